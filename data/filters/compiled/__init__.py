"""Loops that numba compiles: over the code points of texts, over chunks without white space, over words and n-grams.

Each has a plain twin, which its docstring names, and a test that holds the two together. Numba keeps compiled code on disk, and
makes it anew after a change of the file that holds the function. So a compiled function calls, and takes constants from, its
own file only; anything else is an argument.
"""


def compiled(function):
    """Return the function compiled at its first call. The result stays for later runs, in __pycache__ or the user's cache."""
    import numba

    try:
        return numba.njit(function, cache=True)
    except RuntimeError:  # no folder for it can be written
        return numba.njit(function)
