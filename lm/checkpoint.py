"""Checkpoints by Orbax: saved in the background, whole or not at all, and read back onto any mesh.

    <workdir>/checkpoints/<step>/state     parameters and, for a training run, optimizer state and counters
    <workdir>/checkpoints/<step>/meta      JSON: resolved config, loader state, tokens trained so far
    <workdir>/checkpoints/<step>.damaged   one that was found damaged and set aside

Arrays are stored by name, without regard to the mesh they came from. Both folders hold checksums of their files
(lm/checksums.py), which are compared before anything is read; checkpoints of older versions have none.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from lm import checksums
from lm.damage import place_aside, set_aside
from lm.errors import UserError
from lm.parallel.hosts import first_told, is_first


class Arrays(ocp.PyTreeCheckpointHandler):
    """Writes arrays and the checksums of their files. Each process reads its own files for that, in the background."""

    async def async_save(self, directory, *args, **kwargs):
        started = await super().async_save(directory, *args, **kwargs) or []
        where, process = Path(getattr(directory, "path", directory)), jax.process_index()
        done = functools.partial(checksums.write_part, where, f"ocdbt.process_{process}", process)
        return [*started, ocp.future.ChainedFuture(started, done)]

    def finalize(self, directory) -> None:
        super().finalize(directory)
        checksums.write(Path(directory))


class Json(ocp.JsonCheckpointHandler):
    """Writes JSON and its checksum."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        checksums.write(Path(directory))


class Checkpoints:
    """The checkpoints of one run. `keep_last` newest ones stay, and every one at a multiple of `keep_every` (0: none).

    On several hosts all processes call every method together. With `read_only` each reads for itself, and nothing is
    written, not even what a killed save left is swept away. Without `compress` a save needs no memory beyond the arrays that
    lie on the host; with it as much again.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        read_only: bool = False,
        compress: bool = True,
    ):
        for name in ("absl", "asyncio"):  # Orbax tells the story of each save; its errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder, self._read_only = Path(workdir).absolute() / "checkpoints", read_only
        if read_only:
            hosts = alone()
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=hosts)
        else:
            hosts = ocp.options.MultiprocessingOptions()
            options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every or None)
        # Named here, since a process that has not saved yet could not tell what it finds.
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        arrays, meta = Arrays(multiprocessing_options=hosts, use_compression=compress), Json(multiprocessing_options=hosts)
        for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
            registry.add("state", kind, arrays)
        for kind in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add("meta", kind, meta)
        self._manager = ocp.CheckpointManager(self.folder, handler_registry=registry, options=options)

    def latest(self) -> int | None:
        """The step of the newest checkpoint; whether it can be read, `whole` tells."""
        return self._manager.latest_step()

    def whole(self, say: Callable[[str], None] = lambda text: None) -> int | None:
        """Return the step of the newest checkpoint whose files are as they were written; None if there is no checkpoint.

        Newer ones that are damaged are set aside, as <step>.damaged; the first process tells each to `say`. Without checksums
        every array is read once, which finds what is missing or torn, not every changed byte. On several hosts each checks a
        share of the files.
        Raises: UserError if all are damaged, or, with `read_only`, if the newest is. Nothing is set aside then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = self._damage(step)
            if found is None:
                break
            damaged[step] = found
        else:
            step = None
        told = "; ".join(f"{self.folder / str(step)} is damaged: {found}" for step, found in damaged.items())
        if damaged and step is None:
            raise UserError(
                f"{told}; no other checkpoint is whole: put a copy in its place, or delete {self.folder} to start from scratch"
            )
        if damaged and self._read_only:
            raise UserError(
                f"{told}; the one of step {step} is whole: to take it, rename the damaged one, such as "
                f"mv {self.folder / str(max(damaged))} {place_aside(self.folder / str(max(damaged)))}"
            )
        for bad, found in damaged.items() if is_first() else ():
            aside = set_aside(self.folder / str(bad))
            say(f"{self.folder / str(bad)} is damaged: {found}; set aside as {aside.name}, going on from step {step}")
        if damaged:
            first_told(None)  # no process looks before all are renamed
            self._manager.reload()
        return step

    def check(self, step: int) -> None:
        """Raises UserError if this checkpoint is damaged."""
        if found := self._damage(step):
            raise UserError(f"{self.folder / str(step)} is damaged: {found}; put a copy in its place")

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, in words that are the same on every process that calls this together."""
        folder = self.folder / str(step)
        if self._read_only:
            return damage(folder)
        return first_told(damage(folder, jax.process_index(), jax.process_count()))

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


def newest(workdir: Path, step: int | None = None) -> tuple[Checkpoints, int]:
    """The checkpoints of a workdir, opened for reading, and the step of the newest one, or `step` if it is given.

    Raises: UserError if there is none, or if it is damaged: another one would give other results.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no training run: it has no config.json")
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, read_only=True)
        if step is None:
            step = checkpoints.whole()
        else:
            checkpoints.check(step)
        if step is not None:
            return checkpoints, step
        checkpoints.close()
    raise UserError(f"{workdir} has no checkpoint yet; train it first")


def alone() -> ocp.options.MultiprocessingOptions:
    """For a process that reads by itself, without waiting for others."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here}, barrier_sync_key_prefix="read")


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with the files of a checkpoint, in words; None if nothing is.

    part, parts: check this share of the files alone. What was checked is not read again as long as sizes and times stay.
    Raises: PermissionError.
    """
    folder = folder.absolute()  # Orbax reads no other
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return _damage(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in names), part, parts)


@functools.cache
def _damage(folder: Path, files: tuple, part: int, parts: int) -> str | None:
    for path, *_ in files:
        open(path, "rb").close()  # what may not be read is not damaged
    try:
        for item in ("meta", "state"):
            if found := checksums.damage(folder / item, part, parts):
                return f"{item}/{found}"
    except FileNotFoundError:
        return _unreadable(folder, part, parts)
    return None


def _unreadable(folder: Path, part: int, parts: int) -> str | None:
    """The same of a checkpoint without checksums: what cannot be read."""
    item = "meta"
    try:
        json.loads((folder / item / "metadata").read_text())
        item, reader = "state", ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
        for name, x in sorted(named(reader.metadata(folder / item).tree).items())[part::parts]:
            wanted = nested({name: x})
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            reader.restore(folder / item, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True))
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever comes
        return f"{item} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None


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
