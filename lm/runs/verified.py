"""Orbax's handlers, manager and a policy: files are verified after they were written, before older checkpoints are removed."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from lm.files import checksums, saving


class Arrays(ocp.PyTreeCheckpointHandler):
    """Writes arrays and the checksums of their files. Each process computes those of its own files, in the background.

    found: called on process 0 with a description of a file that the disk does not return as it was written.
    """

    async def async_save(self, directory, *args, **kwargs):
        started = await super().async_save(directory, *args, **kwargs) or []
        where, process = Path(getattr(directory, "path", directory)), jax.process_index()
        done = functools.partial(checksums.write_part, where, f"ocdbt.process_{process}", process)
        return [*started, ocp.future.ChainedFuture(started, done)]

    def finalize(self, directory) -> None:
        super().finalize(directory)
        if wrong := checksums.write(Path(directory)):
            self.found(f"state/{wrong}")


class Json(ocp.JsonCheckpointHandler):
    """Writes JSON and its checksum. found: as of Arrays."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        if wrong := checksums.write(Path(directory)):
            self.found(f"meta/{wrong}")


class Chosen:
    """A preservation policy of Orbax: keep one step that is chosen. choose: of ascending steps; None: none of them."""

    def __init__(self, choose: Callable[[list[int]], int | None]):
        self._choose = choose

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        chosen = self._choose(sorted(one.step for one in checkpoints))
        return [one.step == chosen for one in checkpoints]


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
