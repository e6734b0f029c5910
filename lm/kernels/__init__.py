"""Pure functions that carry the time: matrix product, attention, cross-entropy. Each has a plain twin beside it."""
