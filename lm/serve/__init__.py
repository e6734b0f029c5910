"""Serve a model over HTTP, as OpenAI's API: routes, text of sampled tokens, limits, batch files. lm/infer/engine decodes."""
