"""The process that lm/sandbox/run.py starts; its children confine themselves and run code. Standard library only."""
