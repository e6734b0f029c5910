"""What the load generator asks, how it sends it, and the truth it keeps."""
