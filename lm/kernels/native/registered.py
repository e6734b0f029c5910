"""The compiled functions, made known to XLA once in a process."""

import functools
import importlib
import threading

from lm.parallel.mesh import platform


def compiled(module: str) -> bool:
    """Return whether a module's compiled functions run here: on a CPU, with numba.

    module: its name in lm.kernels, such as "cpu.products".
    The first call compiles them, or loads them from numba's cache, and registers them with XLA. Whoever runs a stored
    program without tracing it must call this before.
    """
    return platform() == "cpu" and loaded(module)


_loading = threading.RLock()  # engines trace on threads of their own


def loaded(module: str) -> bool:
    """Compile or load the functions of a module, and return whether that was possible. Uses no device."""
    with _loading:
        return _loaded(module)


@functools.cache
def _loaded(module: str) -> bool:
    try:
        kernels = importlib.import_module(f"lm.kernels.{module}")
    except ImportError:  # numba has no wheel for this platform
        return False
    kernels.register()
    return True
