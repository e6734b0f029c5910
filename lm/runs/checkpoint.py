"""Checkpoints with Orbax: saved in the background, atomically, and restored onto any mesh.

    <workdir>/checkpoints/<step>/state     parameters and, for a training run, optimizer state and counters
    <workdir>/checkpoints/<step>/meta      JSON: resolved config, tokens trained so far, fingerprints (lm/runs/fingerprints.py)
    <workdir>/checkpoints/<step>.damaged   a damaged checkpoint that was renamed

Arrays are stored by name, independent of the mesh. Both folders hold checksums of their files (lm/files/checksums.py), which
are compared after they were written, in the background, and before anything is read. Checkpoints of older versions have none.
"""

import dataclasses
import functools
import logging
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers as policies

from lm.errors import UserError
from lm.files import checksums, saving
from lm.files.saving import place_aside, set_aside
from lm.files.untrusted import read_json
from lm.parallel.hosts import first_text, is_first
from lm.parallel.memory import check_room
from lm.runs.damage import alone, damage, readable
from lm.runs.workdir import steps_saved

PENDING = "pending"  # field of a state: batches that are sampled and not trained yet (lm/align/rl/ahead.py)


class Checkpoints:
    """The checkpoints of one run. Keeps the newest `keep_last`, and those that `keep_…` asks for.

    keep_every: multiples of this (0: none). keep_hours: one every so many hours (0: none). keep_chosen: functions that choose a
    further one among the ascending steps, or None.
    A checkpoint that reads otherwise than it was written is renamed to <step>.damaged, with a line, before older ones go.

    On several hosts all processes call every method together. With `read_only` each process reads alone, and nothing is
    written or removed, not even the rest of a killed save. With `compress` a save needs twice the host memory of the arrays,
    without it once.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_hours: float = 0,
        keep_chosen: Sequence[Callable[[list[int]], int | None]] = (),
        read_only: bool = False,
        compress: bool = True,
    ):
        for name in ("absl", "asyncio"):  # Orbax logs every save; its errors are also raised
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder, self._read_only = Path(workdir).absolute() / "checkpoints", read_only
        self._is_shared = not read_only and jax.process_count() > 1
        if os.path.lexists(self.folder) and not self.folder.is_dir():  # Orbax would find no checkpoint, and fail at a save
            raise UserError(f"{self.folder} is no folder: put the folder of checkpoints back, or use another --workdir")
        if read_only:
            hosts = alone()
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=hosts)
        else:
            hosts = ocp.options.MultiprocessingOptions()
            keep: list = [policies.LatestN(keep_last)]
            keep += [policies.EveryNSteps(keep_every)] if keep_every else []
            keep += [policies.EveryNSeconds(max(1, int(3600 * keep_hours)))] if keep_hours else []
            keep += [Chosen(choose) for choose in keep_chosen]
            options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(keep))
        # Registered here, because a process that has not saved yet could not recognise the items that it finds.
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        arrays, meta = Arrays(multiprocessing_options=hosts, use_compression=compress), Json(multiprocessing_options=hosts)
        for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
            registry.add("state", kind, arrays)
        for kind in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add("meta", kind, meta)
        self._wrong = arrays.wrong = meta.wrong = list[str]()  # on process 0: descriptions of the damage of the last save
        self._manager = Manager(self.folder, handler_registry=registry, options=options)
        self._manager.verified = self._verified

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, ascending, with one that is being saved, but not if it was damaged by then."""
        steps = sorted(self._manager.all_steps())
        return steps[:-1] if self._wrong else steps

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, which may be damaged (see `whole`)."""
        return self._manager.latest_step()

    def whole(self, say: Callable[[str], None] = lambda text: None) -> int | None:
        """Return the step of the newest undamaged checkpoint; None if there is no checkpoint.

        Newer damaged checkpoints are renamed to <step>.damaged, and process 0 reports each to `say`. Without checksums every
        array is read once, which finds missing or truncated files, but not every changed byte. On several hosts each process
        checks a share of the files.
        Raises: UserError if all are damaged, or, with `read_only`, if the newest is. Then nothing is renamed.
        """
        damaged: dict[int, str] = {}
        for step in reversed(steps_saved(self.folder.parent)):  # also what is no folder, which Orbax does not see
            if (found := self._damage(step)) is None:
                break
            damaged[step] = found
        else:
            step = None
        report = "; ".join(f"{self.folder / str(step)} is damaged: {found}" for step, found in damaged.items())
        if damaged and step is None:
            raise UserError(
                f"{report}; no other checkpoint is whole: restore it from a copy, or delete {self.folder} to start from scratch"
            )
        if damaged and self._read_only:
            raise UserError(
                f"{report}; step {step} is whole: to use it, rename the damaged one, such as "
                f"mv {self.folder / str(max(damaged))} {place_aside(self.folder / str(max(damaged)))}"
            )
        for bad, found in damaged.items() if is_first() else ():
            aside = set_aside(self.folder / str(bad))
            say(f"{self.folder / str(bad)} is damaged: {found}; set aside as {aside.name}, going on from step {step}")
        if damaged:
            first_text(None)  # a barrier: no process reloads before all are renamed
            self._manager.reload()
        return step

    def _damage(self, step: int) -> str | None:
        """Return a description of a checkpoint's damage, or None. Collective; the text is the same on every process."""
        if not self._is_shared:
            return damage(self.folder / str(step))
        return first_text(damage(self.folder / str(step), jax.process_index(), jax.process_count()))

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Start to save in the background. Arrays are copied before this returns; errors are raised at the next call."""
        self._settled()
        items = {"state": ocp.args.PyTreeSave(plain(state)), "meta": ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self, again: Callable[[], None] | None = None) -> None:
        """Wait until the started save is on disk and verified. Raises its errors.

        again: saves once more; called if the disk did not return what was written. Raises UserError if that cannot help.
        """
        wrong = self._settled()
        if wrong and again:
            again()
            wrong = self._settled()
        if wrong:
            raise UserError(f"{self.folder}: the disk does not keep what is written ({wrong}); use another --workdir")

    def _settled(self) -> str | None:
        """Wait until the started save is on disk. Return its damage, if it was set aside. Collective."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        wrong = self._wrong[0] if self._wrong else None
        wrong = first_text(wrong) if self._is_shared else wrong
        self._wrong.clear()
        if wrong:
            self._manager.reload()  # without the step that was set aside
        return wrong

    def _verified(self, step: int) -> bool:
        """Set the checkpoint aside if the disk does not return what was written. Return False then. In Orbax's thread."""
        if not self._wrong:
            return True
        aside = set_aside(self.folder / str(step))
        text = f"is damaged: {self._wrong[0]}; set aside as {aside.name}, and saved again with the next one"
        print(f"{self.folder / str(step)} {text}", file=sys.stderr, flush=True)
        return False

    def meta(self, step: int) -> dict:
        """Return the metadata. Raises UserError if they cannot be read."""
        with readable(self.folder / str(step)):
            return dict(read_json(self.folder / str(step) / "meta" / "metadata"))  # Orbax would read a file of any size

    def restore(self, step: int, abstract: Any) -> Any:
        """Restore the state onto the shardings of `abstract`, a tree of ShapeDtypeStructs like the saved state.

        A saved `guard` is ignored if `abstract` has none, and so are batches that are PENDING.
        Raises UserError if the checkpoint holds other arrays, other shapes or other dtypes.
        """
        wanted, where = plain(abstract), self.folder / str(step)
        stored = {name: x for name, x in self.stored(step).items() if name in wanted or name not in ("guard", PENDING)}
        check_shapes(wanted, stored, where)
        theirs = named(stored)
        for name, x in named(wanted).items():
            if (other := np.dtype(theirs[name].dtype)) != x.dtype:  # Orbax would convert and round it
                raise UserError(
                    f"{where}: {name} is {other} there and {x.dtype} in this run, which did not save it so: put a copy in its "
                    "place, or use another --workdir"
                )
        return unplain(abstract, self._read(step, wanted))

    def remove(self, step: int) -> None:
        """Delete a checkpoint."""
        self._manager.delete(step)

    def fits(self, step: int, field: str, abstract: Any) -> bool:
        """Return whether a field of a checkpoint's state has the names and shapes of `abstract`."""
        return _shapes(plain({field: abstract})) == _shapes({field: self.stored(step).get(field, {})})

    def stored(self, step: int) -> dict[str, Any]:
        """Return shape and dtype of each array of a state, as nested dicts."""
        return self._manager.item_metadata(step)["state"].tree

    def stored_params(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the stored shape and dtype of every parameter of a checkpoint, by dotted name."""
        with readable(self.folder / str(step)):
            return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in named(self.stored(step)["params"]).items()}

    def restore_params(self, step: int, abstract_params: nnx.State) -> nnx.State:
        """Restore only the parameters of a state, in the dtypes and onto the shardings of `abstract_params`.

        Raises UserError if the checkpoint holds other parameters or other shapes.
        """
        wanted = plain(abstract_params)
        check_shapes(wanted, nested(self.stored_params(step)), self.folder / str(step))
        check_room(wanted, self.folder / str(step))
        return unplain(abstract_params, self._read(step, {"params": wanted})["params"])

    def pending(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of batches that were sampled before the checkpoint and not trained, by their step; {} if none."""
        with readable(self.folder / str(step)):
            wanted = self.stored(step).get(PENDING, {})
        few = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
        return self._read(step, {PENDING: few}, as_numpy=True)[PENDING] if few else {}

    def read_params(self, step: int, few: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
        """Return a few of `stored_params` as NumPy arrays in their stored dtypes. It does not read the metadata again."""
        return named(self._read(step, {"params": nested(few)}, as_numpy=True)["params"])

    def _read(self, step: int, wanted: dict, as_numpy: bool = False) -> dict:
        def options(x: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
            if as_numpy:
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

        how = jax.tree.map(options, wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
        with readable(self.folder / str(step)):
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def close(self) -> None:
        self._manager.close()


class Checked:
    """Writes the checksums of an item's files after the files.

    wrong: gets, on process 0, a description of a file that the disk does not return as it was written.
    """

    item: str
    wrong: list[str]

    def finalize(self, directory) -> None:
        super().finalize(directory)
        if wrong := checksums.write(Path(directory)):
            self.wrong.append(f"{self.item}/{wrong}")


class Arrays(Checked, ocp.PyTreeCheckpointHandler):
    """Writes arrays. Each process computes the checksums of its own files, in the background."""

    item = "state"

    async def async_save(self, directory, *args, **kwargs):
        started = await super().async_save(directory, *args, **kwargs) or []
        where, process = Path(getattr(directory, "path", directory)), jax.process_index()
        done = functools.partial(checksums.write_part, where, f"ocdbt.process_{process}", process)
        return [*started, ocp.future.ChainedFuture(started, done)]


class Json(Checked, ocp.JsonCheckpointHandler):
    """Writes JSON."""

    item = "meta"


@dataclasses.dataclass
class Chosen:
    """A preservation policy of Orbax: keep one step that is chosen. choose: of ascending steps; None: none of them."""

    choose: Callable[[list[int]], int | None]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        chosen = self.choose(sorted([info.step for info in checkpoints]))
        return [info.step == chosen for info in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's manager, which calls `verified(step)` after a save is in its place and before older checkpoints are removed.

    If it returns False, none is removed. Names and contents of the files of a save are synced to the disk before. So a
    loss of power does not take the new checkpoint after the old ones are gone.
    """

    verified: Callable[[int], bool]
    _removing: list[int] = []

    def _finalize(self, step: int, steps_to_remove: list[int]) -> None:
        self._removing = steps_to_remove
        super()._finalize(step, steps_to_remove)

    def _finalize_checkpoint(self, step: int) -> None:
        super()._finalize_checkpoint(step)
        for folder, *_ in os.walk(Path(self.directory, str(step))):
            saving.sync(Path(folder))
        saving.sync(Path(self.directory))
        if not self.verified(step):
            self._removing.clear()


def newest(workdir: Path, step: int | None = None) -> tuple[Checkpoints, int]:
    """Open the checkpoints of a workdir for reading. Return them and the newest step, or `step` if it is given.

    Raises: UserError if there is no checkpoint, or if it is damaged, because another one would give other results.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no training run: it has no config.json")
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir, read_only=True)
        if step is None:
            step = checkpoints.whole()
        elif text := damage(checkpoints.folder / str(step)):
            raise UserError(f"{checkpoints.folder / str(step)} is damaged: {text}; put a copy in its place")
        if step is not None:
            return checkpoints, step
        checkpoints.close()
    raise UserError(f"{workdir} has no checkpoint yet; train it first")


def plain(tree: Any) -> Any:
    """Return the tree as nested dicts of arrays, named by field, module and parameter: the form that is stored."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    return nested({_name(path): value for path, leaf in flat for value in jax.tree.leaves(leaf)})


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves of nested dicts by dotted name, such as stacks.0.0.attention.query.weight."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts from leaves by dotted name; the inverse of `named`."""
    out: dict = {}
    for name, leaf in leaves.items():
        node = out
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return out


def unplain(like: Any, tree: Any) -> Any:
    """Return a tree like `like` with the leaves of nested dicts; the inverse of `plain`."""

    def pick(path, leaf):
        if not jax.tree.leaves(leaf):
            return leaf
        node = functools.reduce(operator.getitem, _name(path).split("."), tree)
        return jax.tree.map(lambda _: node, leaf)

    return jax.tree_util.tree_map_with_path(pick, like, is_leaf=_is_variable)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in named(tree).items() if hasattr(x, "shape")}


def check_shapes(wanted: Any, stored: Any, where: Path) -> None:
    """Raise UserError if shapes or names differ; the error names the first such array."""
    ours, theirs = _shapes(wanted), _shapes(stored)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where} is of another architecture: {name} is {theirs.get(name, 'missing')} there and "
                f"{ours.get(name, 'missing')} in this config; use its config, or another --workdir"
            )
