"""What compiled CPU kernels share. calls.py joins functions that numba compiles to XLA, registered.py makes them known to it,
vectors.py has the vector code, scores.py what attention does with scores. No compiler is needed: numba brings LLVM.
"""
