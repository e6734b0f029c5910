"""The published rules on words and lines: Gopher, C4, FineWeb, DCLM, and those on source files."""
