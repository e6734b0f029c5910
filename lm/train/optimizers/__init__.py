"""AdamW, Muon, Lion and Adafactor as optax transforms over the parameters of a model."""
