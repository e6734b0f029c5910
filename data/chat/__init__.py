"""Convert records of conversations, preferences and tasks to batches: formats, templates, loss masks, files of examples."""
