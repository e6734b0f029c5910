"""Side-by-side measurements of lmcraft against its peers."""
