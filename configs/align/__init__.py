"""Configs of align.py: one per method. default.py explains every key."""
