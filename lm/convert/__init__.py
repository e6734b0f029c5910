"""Import and export of Hugging Face checkpoints: a table of weights for each family, and the files."""
