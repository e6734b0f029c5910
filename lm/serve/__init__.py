"""Serve a model over HTTP: OpenAI's API over lm/infer/engine, text of tokens, limits, batch files, metrics, the monitor."""
