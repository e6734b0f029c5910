"""The static part of the compiled step: a model without its arrays."""

import functools

from flax import nnx
from jax.tree_util import PyTreeDef


class Program:
    """A model without its arrays. Equal ones are the same object, so that a step need not compare them."""

    def __init__(self, graph: nnx.GraphDef, tree: PyTreeDef) -> None:
        self.graph, self.tree = graph, tree


@functools.lru_cache(maxsize=16)
def program(graph: nnx.GraphDef, tree: PyTreeDef) -> Program:
    """Return the program of a graph, and of the tree of (params, layers) of `Weights`."""
    return Program(graph, tree)
