"""Fast CPU kernels: products with packed weights and attention to pages, for serving; large products and attention with AMX,
for training. No compiler is needed: numba brings LLVM.

packed.py, pages.py, large.py and flash_attention.py are for callers; each of their functions has a plain twin. calls.py joins
compiled functions to XLA, vectors.py has the vector code and amx.py that of tiles, products.py, attention.py, gemm.py and
flash.py are the kernels.
"""
