"""AdamW, Muon and Lion as optax transforms over the parameters of a model."""
