"""What an engine computes on its devices: its steps, and what is drawn from their logits, with the weights and the pages."""

import jax

from lm.infer.engine.adapters import Slots
from lm.infer.engine.draw import Drawn
from lm.infer.engine.room import Capacity, empty_pages
from lm.infer.engine.step import Drawing, Laid, drawn, forward
from lm.infer.engine.weights import Weights
from lm.model.media import Vectors
from lm.parallel.channel import Channel
from lm.parallel.hosts import is_first


class Computer:
    """The arrays of an engine, on the current mesh, and its steps.

    count: of pages. known: only ids below it are drawn. slots: room for adapters. channel: in a job of several processes that
    compute the same, from process 0 to the others, which `follow`; None: each is told of all steps.
    """

    def __init__(
        self, weights: Weights, capacity: Capacity, count: int, known: int, slots: Slots | None, channel: Channel | None
    ):
        self._capacity, self._count, self._known, self._slots = capacity, count, known, slots
        self._channel = channel
        self.follows = channel is not None and not is_first()
        self.hidden: jax.Array | None = None
        self.use(weights)
        self.pages: tuple[jax.Array, ...] | None = self._empty_pages()

    def use(self, weights: Weights) -> None:
        self.weights, self.model = weights, weights.split()

    def free(self) -> None:
        """Forget the weights, so that others have room. `use` must follow."""
        del self.weights, self.model

    @property
    def held(self) -> tuple[int, int]:
        """Return the bytes of the weights and of the pages."""
        weights, pages = (jax.tree.leaves(arrays) for arrays in (self.model[1], self.pages))
        return sum(x.nbytes for x in weights), sum(x.nbytes for x in pages)

    def step(self, laid: Laid, drawings: list[Drawing], media: Vectors | None = None) -> list[Drawn]:
        """Compute a step, and draw from its logits. `hidden` has hidden states then, as the step returns them."""
        if self._channel is not None and not self.follows:
            self._channel.send((laid._replace(places=[], draws=[]), drawings))
        self.pages = self._empty_pages() if self.pages is None else self.pages
        mask_BR = self._slots.mask(laid.slots_B) if self._slots else None
        found = forward(*self.model, self.pages, laid.tokens_B, laid.table, laid.at_S, mask_BR, media)
        self.pages, logits_SV, self.hidden = found
        return [drawn(logits_SV, self._known, drawing) for drawing in drawings]

    def follow(self) -> None:
        """Compute the steps of process 0, until it calls `end`."""
        assert self._channel is not None
        while (step := self._channel.receive()) is not None:
            self.step(*step)

    def end(self) -> None:
        """Let the others return from `follow`."""
        if self._channel is not None:
            self._channel.send(None)

    def recover(self) -> None:
        """Have the pages made anew if a failed step has taken them."""
        if any(x.is_deleted() for x in jax.tree.leaves(self.pages)):
            self.pages = None

    def _empty_pages(self) -> tuple[jax.Array, ...]:
        return empty_pages(self.weights.config, self._capacity, self._count)
