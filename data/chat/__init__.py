"""Records of conversations, preferences and tasks to batches: shapes, templates, loss masks, examples on disk."""
