"""Checkpoints by Orbax: saved in the background, whole or not at all, and read back onto any mesh.

    <workdir>/checkpoints/<step>/state     parameters and, for a training run, optimizer state and counters
    <workdir>/checkpoints/<step>/meta      JSON: resolved config, loader state, tokens trained so far

Arrays are stored by name, without regard to the mesh they came from.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from lm.errors import UserError


class Checkpoints:
    """The checkpoints of one run. `keep_last` newest ones stay, and every one at a multiple of `keep_every` (0: none).

    On several hosts all processes call every method together. With `read_only` each reads for itself, and nothing is
    written, not even what a killed save left is swept away. Without `compress` a save needs no memory beyond the arrays that
    lie on the host; with it as much again.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, keep_last: int = 2, keep_every: int = 0, read_only: bool = False,
        compress: bool = True,
    ):  # fmt: skip
        for name in ("absl", "asyncio"):  # Orbax tells the story of each save; its errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = Path(workdir).absolute() / "checkpoints"
        if read_only:
            hosts = ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="read"
            )
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=hosts)
        else:
            hosts = ocp.options.MultiprocessingOptions()
            options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        # Named here, since a process that has not saved yet could not tell what it finds.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=hosts, use_compression=compress),
            "meta": ocp.JsonCheckpointHandler(multiprocessing_options=hosts),
        }
        self._manager = ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Starts saving; arrays are copied before this returns. A failure of this save shows at the next call."""
        items = {"state": ocp.args.PyTreeSave(plain(state)), "meta": ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Blocks until what was started is on disk. Raises what went wrong with it."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def meta(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, abstract: Any) -> Any:
        """Reads the state onto the shardings of `abstract`, a tree of ShapeDtypeStructs like the state that was saved.

        Raises UserError if the checkpoint holds other arrays or other shapes.
        """
        wanted = plain(abstract)
        check_shapes(wanted, self._manager.item_metadata(step)["state"].tree, self.folder / str(step))
        return unplain(abstract, self._read(step, wanted))

    def stored_params(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter of a checkpoint, by dotted name, as it is stored."""
        tree = self._manager.item_metadata(step)["state"].tree
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named(tree["params"]).items()}

    def restore_params(self, step: int, abstract_params: nnx.State) -> nnx.State:
        """Reads the parameters of a state and nothing else of it, in the dtypes and onto the shardings of `abstract_params`.

        Raises UserError if the checkpoint holds other parameters or other shapes.
        """
        wanted = plain(abstract_params)
        check_shapes(wanted, nested(self.stored_params(step)), self.folder / str(step))
        return unplain(abstract_params, self._read(step, {"params": wanted})["params"])

    def read_params(self, step: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """A few parameters by dotted name, on the host and as they are stored."""
        stored = self.stored_params(step)
        wanted = {"params": nested({name: stored[name] for name in names})}
        args = ocp.args.PyTreeRestore(
            wanted, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted), partial_restore=True
        )
        return named(self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"])

    def _read(self, step: int, wanted: dict) -> dict:
        each = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=each, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def close(self) -> None:
        self._manager.close()


def plain(tree: Any) -> Any:
    """The tree as nested dicts named by field, module and parameter: what is written, whatever holds it in memory."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    return nested({".".join(_names(path)): leaf.get_value() if _is_variable(leaf) else leaf for path, leaf in flat})


def named(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by dotted name, such as stacks.0.0.attention.query.weight."""
    return {".".join(_names(path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `named`."""
    out: dict = {}
    for name, leaf in leaves.items():
        node = out
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return out


def unplain(like: Any, tree: Any) -> Any:
    """Inverse of `plain`: the leaves of nested dicts, put into a tree like `like`."""

    def pick(path, leaf):
        node = tree
        for name in _names(path):
            node = node[name]
        return jax.tree.map(lambda _: node, leaf)

    return jax.tree_util.tree_map_with_path(pick, like, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _names(path) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))) for key in path]


def check_shapes(wanted: Any, stored: Any, where: Path) -> None:
    """Raises UserError naming the first array that differs."""

    def shapes(tree):
        return {name: tuple(leaf.shape) for name, leaf in named(tree).items() if hasattr(leaf, "shape")}

    ours, theirs = shapes(wanted), shapes(stored)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where} is of another architecture: {name} is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} in this config; use its config, or another --workdir"
            )
