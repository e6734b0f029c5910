"""GGUF, the format of llama.cpp: what its settings and tensors mean."""
