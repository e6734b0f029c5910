"""Load a checkpoint and generate text with it."""
