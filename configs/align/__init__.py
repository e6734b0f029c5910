"""Configs of align.py: one for each method; default.py explains every key."""
