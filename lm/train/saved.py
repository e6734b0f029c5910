"""The state of a run in its checkpoints: restored at the beginning, saved in between and at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from lm.bucket.places import with_urls
from lm.convert.base import reference
from lm.convert.source import open_source
from lm.model.linear import trainable
from lm.train import keeping
from lm.train.rewind import Rewinds
from lm.train.state import TrainState, stored, unstored
from lm.train.step import Trainer, abstract_state, model_config_of, state_shardings


class Saved:
    """The checkpoints of a run.

    Attributes:
      losses: what decides which checkpoints stay.
      base: a reference to the base weights of adapters, where checkpoints do not hold them; else None.
      guard_is_new: whether the restored checkpoint had no spike guard of this form.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._config, self._workdir, self._learns = config, workdir, trainable(model_config_of(config))
        self.checkpoints, self.losses = keeping.opened(config, workdir)
        self.base: Any = None
        self.guard_is_new = False

    def restore(
        self, trainer: Trainer, mesh: Mesh, rewinds: Rewinds, start: Callable[[], nnx.State | None]
    ) -> tuple[TrainState, int, int]:
        """Return (state, steps done, tokens trained) of the newest whole checkpoint, or of a new run from start().

        Raises: UserError: the checkpoint is not one of this run, or all are damaged.
        """
        begin = rewinds.newest(self.checkpoints, self.losses)
        if begin is None:
            if self._config.init_from and self._config.model.adapter.rank:
                self.base = reference(self._config.init_from, self._workdir)
            init = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh), donate_argnums=0)
            return rewinds.ready(init(start()), mesh), 0, 0
        meta, abstract = self.checkpoints.meta(begin), abstract_state(trainer, mesh)
        keeping.check(meta, self._config, self._workdir, begin)
        self.base = meta.get("base")
        average = nnx.filter_state(abstract.params, self._learns) if self.checkpoints.has(begin, "raw") else ()
        guard = abstract.guard if self.checkpoints.fits(begin, "guard", abstract.guard) else ()
        fields = self.checkpoints.restore(begin, self._fields(abstract._replace(average=average, guard=guard)))
        if self.base:
            fields["params"] = open_source(self._workdir, begin).load(abstract.params)
        state = unstored(fields, self._learns, bool(self._config.ema))
        self.guard_is_new = begin > 0 and not state.guard
        return rewinds.ready(state, mesh), begin, meta["tokens"]

    def save(self, step: int, state: TrainState, tokens: int, rewinds: Rewinds) -> None:
        """Begin to save the state after a step."""
        about = {
            "config": self._config.to_dict(),
            "tokens": tokens,
            "fingerprints": keeping.fingerprints(self._workdir),
            **({"base": self.base} if self.base else {}),
            **rewinds.meta(),
        }
        self.checkpoints.save(step, self._fields(state), with_urls(about))

    def _fields(self, state: TrainState) -> dict[str, Any]:
        """Return the part of the state that checkpoints hold, by name."""
        fields = stored(state, self._learns)
        return fields if self.base is None else fields | {"params": nnx.filter_state(fields["params"], self._learns)}
