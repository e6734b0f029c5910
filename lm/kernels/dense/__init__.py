"""Fast CPU kernels for training on processors with AMX: products of large matrices, and attention.

usable.py says whether they run, flops.py what they multiply. large.py and attention.py are backends
of lm/kernels/ops.py. gemm.py and flash.py are the kernels, tiles.py the tile registers, tiling.py brings matrices into them;
lm/kernels/native compiles them.
"""
