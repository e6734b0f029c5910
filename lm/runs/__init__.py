"""The folder of a run: its record, lock, checkpoints, and where it comes from."""
