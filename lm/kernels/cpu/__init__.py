"""Fast CPU kernels for serving: products with packed weights, and attention to pages. No compiler is needed: numba brings LLVM.

packed.py and pages.py are for callers; each of their functions has a plain twin. calls.py joins compiled functions to XLA,
vectors.py has the vector code, products.py and attention.py are the kernels.
"""
