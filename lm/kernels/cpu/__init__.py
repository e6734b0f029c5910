"""Fast CPU kernels for serving: products with packed weights, and attention to pages.

packed.py, pages.py and row_sums.py are for callers; each of their functions has a plain twin. products.py, attention.py and
sums.py are the kernels, compiled by lm/kernels/native.
"""
