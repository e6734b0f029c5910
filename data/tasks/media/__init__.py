"""Tasks with images and sounds that are made on the spot."""
