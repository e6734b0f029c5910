"""Hugging Face checkpoints in and out: a table of weights for each family, and the files they stream from and to."""
