"""The compiled functions, made known to XLA once in a process."""

import functools

import jax


def compiled() -> bool:
    """Return whether the compiled functions run here: on a CPU, with numba.

    The first call compiles them, or loads them from numba's cache, and registers them with XLA. Whoever runs a stored
    program without tracing it must call this before.
    """
    return jax.default_backend() == "cpu" and _registered()


@functools.cache
def _registered() -> bool:
    try:
        from lm.kernels.cpu import attention, products
    except ImportError:  # numba has no wheel for this platform
        return False
    products.register()
    attention.register()
    return True
