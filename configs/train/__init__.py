"""Training configs. `default.py` explains every key; the others set sizes."""
