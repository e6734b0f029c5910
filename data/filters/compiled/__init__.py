"""Compile loops with numba: over the code points of texts, over chunks without white space, over words and n-grams.

Each loop has a plain twin and a test that holds the two together. Numba keeps compiled code on disk, and makes it anew after a
change of the file that holds the function. So a compiled function calls, and takes constants from, its own file only; anything
else is an argument.
"""

import functools
import sys
import threading


def compiled(function):
    """Return the function compiled at its first call. The result stays for later runs, in __pycache__ or the user's cache."""
    try:
        return _numba().njit(function, cache=True)
    except RuntimeError:  # no folder for it can be written
        return _numba().njit(function)


@functools.cache
def _numba():
    """Return numba, loaded without SciPy: its BLAS takes 0.2 s to load, and no loop of ours multiplies matrices."""
    alone = "scipy" not in sys.modules and threading.active_count() == 1  # else another thread could want SciPy meanwhile
    hidden = {"scipy": None} if alone else {}  # an import of what is None fails
    sys.modules.update(hidden)
    try:
        import numba
        import numba.np.arraymath  # looks for it
    finally:
        for name in hidden:
            del sys.modules[name]
    return numba
