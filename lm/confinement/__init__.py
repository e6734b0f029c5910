"""The process that lm/sandbox.py starts, whose children put layers around themselves and run code. Standard library only."""
