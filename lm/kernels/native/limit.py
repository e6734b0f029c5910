"""Let NUMBA_CPU_NAME limit the vector instructions of compiled functions. lm/__init__.py imports this before numba.

numba itself tunes for the processor of that name, but goes on using the instructions of this one.
"""

import os

from llvmlite.binding import get_host_cpu_features

BFLOAT16 = ("cooperlake", "sapphirerapids", "emeraldrapids", "graniterapids", "znver4", "znver5")
AVX512 = (*BFLOAT16, "skylake-avx512", "cascadelake", "icelake-client", "icelake-server", "tigerlake", "rocketlake")

_name = os.environ["NUMBA_CPU_NAME"]
_old = ("+amx", "+avx512", "+avx10", "+avxvnni")
_without = ("+amx",) if _name in BFLOAT16 else ("+amx", "+avx512bf16") if _name in AVX512 else _old
_features = get_host_cpu_features().flatten().split(",")
os.environ.setdefault("NUMBA_CPU_FEATURES", ",".join(f"-{x[1:]}" if x.startswith(_without) else x for x in _features))
