"""Published models that see or hear: an encoder, a projector and a language model."""
