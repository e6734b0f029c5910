"""Fast CPU kernels for serving: products with packed weights, and attention to pages.

packed.py, packed_product.py, pages.py and row_sums.py are backends of lm/kernels/ops.py. products.py, attention.py and sums.py
are the kernels, compiled by lm/kernels/native.
"""
