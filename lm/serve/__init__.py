"""Serving: the HTTP API over the engine, its pages, metrics, and the monitor of behaviour."""
