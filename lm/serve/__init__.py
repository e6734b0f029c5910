"""Serve a model over HTTP: OpenAI's API over lm/infer/engine, its pages, metrics, and the monitor of behaviour."""
