"""The process that lm/sandbox/run.py starts. Its children confine themselves and run code. Standard library only."""
