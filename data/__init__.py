"""Convert text and conversations to batches."""
