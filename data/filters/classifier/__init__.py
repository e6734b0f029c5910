"""Learned classifiers of documents: linear models on hashed n-grams, trained with JAX and used with NumPy."""
