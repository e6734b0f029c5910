"""The functions that take most of the time: matrix product, attention, cross-entropy. Each has a plain reference twin."""
