"""What the decoder reads in one call, and what its layers must know of it: rotation, who sees whom, the place in the cache.

Axes: B batch, T time, D model, S cache slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import RECURRENT, ModelConfig
from lm.config.towers import Media
from lm.kernels.attention import Branches, Visible
from lm.model.cache import DecodeState, Given
from lm.model.media import MEDIA, Vectors
from lm.model.pages import PagedState, PageTable
from lm.model.positions import once, rotary_angles
from lm.parallel.arrays import PyTree
from lm.parallel.context import slots
from lm.parallel.mesh import spec


class Inputs(NamedTuple):
    """Tokens, and what is to be known of them. Only the tokens must be given.

    tokens_BT: int. segments_BT: int; tokens see only earlier tokens of their own segment, 0 is padding; default 1.
    positions_BT: int, default 0, 1, …; must be given with a memory.
    branches: for rows that hold several continuations.
    noise_BTD: added to the embeddings.
    media: images and sound that take the places of some of these tokens. vectors: those of media that are encoded already.
    """

    tokens_BT: jax.Array
    segments_BT: jax.Array | None = None
    positions_BT: jax.Array | None = None
    branches: Branches | None = None
    noise_BTD: jax.Array | None = None
    media: Media | None = None
    vectors: Vectors | None = None

    def filled(self) -> "Inputs":
        """Return the inputs with default segments and positions, as arrays."""
        tokens_BT, segments_BT, positions_BT = jnp.asarray(self.tokens_BT), self.segments_BT, self.positions_BT
        segments_BT = jnp.ones_like(tokens_BT) if segments_BT is None else jnp.asarray(segments_BT)
        if positions_BT is None:
            positions_BT = jnp.zeros_like(tokens_BT) + slots(tokens_BT.shape[1]).astype(tokens_BT.dtype)
        return self._replace(tokens_BT=tokens_BT, segments_BT=segments_BT, positions_BT=jnp.asarray(positions_BT))


def inputs_of(batch: dict[str, jax.Array], noise_BTD: jax.Array | None = None) -> Inputs:
    """Return the inputs of a batch of training: its tokens, segments and positions, and media if it has some."""
    images, audio = map(batch.get, MEDIA)
    media = None if images is None and audio is None else Media(images, audio)
    return Inputs(batch["tokens"], batch["segment_ids"], batch["positions"], noise_BTD=noise_BTD, media=media)


Memory = DecodeState | PagedState  # what a model keeps of earlier tokens


class Step(NamedTuple):
    """What a layer needs to know about the T tokens of this call."""

    rotary: tuple[jax.Array, jax.Array] | None  # cos and sin of the T tokens
    visible: Visible | None  # None with a table
    reads_cache: bool  # whether keys and values are read from the cache; otherwise the T tokens only attend to one another
    slot: jax.Array | int  # of the first token
    valid_BT: jax.Array  # bool, False for padding
    table: PageTable | None = None  # for a paged cache; then T = 1, and every row is a token of some sequence
    tokens_BT: jax.Array | None = None  # for model.value_embeddings
    temperature_BT11: jax.Array | None = None  # float32, multiplies queries (model.attention_temperature)
    fresh_BT: jax.Array | None = None  # bool, for layers with a state: the token is the first of its sequence
    given: Given | None = None  # keys and values of an earlier layer of this kind, for layers that take them


def steps_of(
    config: ModelConfig, inputs: Inputs, memory: Memory | None, prefill: bool
) -> tuple[dict[bool, Step], Memory | None]:
    """Return the Step of local layers (True) and of global ones (False), and the memory with the tokens' slots filled.

    inputs: with all of tokens, segments and positions. prefill: the memory is empty.
    """
    segments_BT, positions_BT, table = inputs.segments_BT, inputs.positions_BT, None
    assert segments_BT is not None and positions_BT is not None
    key_positions_BS = positions_BT
    visible: Visible | None
    slot: jax.Array | int
    if isinstance(memory, PagedState):
        visible, reads_cache, slot, table = None, True, 0, memory.table
    elif memory is None or prefill:
        memory = None if memory is None else memory.filled(segments_BT, positions_BT, 0)
        visible, reads_cache, slot = Visible(segments_BT, segments_BT, slots(segments_BT.shape[1]), inputs.branches), False, 0
    else:
        slot = memory.slot
        memory = memory.filled(segments_BT, positions_BT, slot)
        key_positions_BS = memory.positions_BS
        slots_T = slot + slots(segments_BT.shape[1])
        visible, reads_cache = Visible(segments_BT, memory.segments_BS, slots_T, inputs.branches), True
    rotary = _rotary(config, positions_BT, table) if config.positions == "rotary" else {}
    shared = next(iter(rotary.values()), None)
    kinds = {kind.local for kind in config.layer_kinds}
    tokens_BT = inputs.tokens_BT if config.value_embeddings else None
    warmth = _temperature(config, positions_BT) if config.attention_temperature else None
    fresh_BT = _fresh(segments_BT, positions_BT) if not set(RECURRENT).isdisjoint(config.attention_pattern) else None
    seen = {False: visible, True: visible}
    if config.chunked and visible is not None:
        seen[True] = _in_chunks(config, visible, positions_BT, key_positions_BS)
    rest = reads_cache, slot, segments_BT > 0, table, tokens_BT, warmth, fresh_BT
    return {local: Step(rotary.get(local, shared), seen[local], *rest) for local in sorted(kinds)}, memory


def with_given(steps: dict[bool, Step], local: bool, caches: PyTree) -> tuple[dict[bool, Step], PyTree]:
    """Return the steps with what a layer gives to later ones of its kind, and its caches alone.

    caches: of the stack of that layer, as `through` returns them.
    """

    def is_given(x: object) -> bool:
        return isinstance(x, Given)

    (given,) = jax.tree.leaves(caches, is_leaf=is_given)
    own = jax.tree.map(lambda x: x.cache, caches, is_leaf=is_given)
    given = jax.tree.map(lambda x: x[0], given) if given.k.ndim == 5 else given  # of a scan over one layer
    return steps | {local: steps[local]._replace(given=given)}, own


def _in_chunks(config: ModelConfig, visible: Visible, positions_BT: jax.Array, key_positions_BS: jax.Array) -> Visible:
    """Return what the queries of chunk layers see: each chunk of a text is a segment of its own."""
    longest = max(config.max_positions, key_positions_BS.shape[1])  # a text may be longer than the context
    chunks = longest // config.window + 1

    def segments(of_texts: jax.Array, positions: jax.Array) -> jax.Array:
        return jnp.where(of_texts > 0, of_texts * chunks + positions // config.window, 0)

    key_segments_BS = segments(visible.key_segments_BS, key_positions_BS)
    return visible._replace(segments_BT=segments(visible.segments_BT, positions_BT), key_segments_BS=key_segments_BS)


def _temperature(config: ModelConfig, positions_BT: jax.Array) -> jax.Array:
    """Return 1 + a·ln(1 + ⌊p / length⌋) for each position p, float32 [B, T, 1, 1] (Llama 4; after Nakanishi 2025)."""
    positions_BT = positions_BT + config.temperature_nope
    grown = jnp.log1p((positions_BT // config.temperature_length).astype(jnp.float32))
    return (1 + config.attention_temperature * grown)[:, :, None, None]


def _fresh(segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Return whether each token is the first of its sequence: of its segment in the row, or at position 0 of its text."""
    differs_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
    return (segments_BT > 0) & (differs_BT | (positions_BT == 0))


def _rotary(config: ModelConfig, positions_BT: jax.Array, table: PageTable | None) -> dict[bool, tuple[jax.Array, jax.Array]]:
    """Return cos and sin for local layers and for global ones; of one kind only, if both have the same."""
    tokens, longest = [positions_BT], None
    if config.rope.depends_on_length and table is None:
        longest = jnp.max(positions_BT) + 1
    elif config.rope.depends_on_length and table is not None:
        tokens.append(jnp.asarray(table.length_B)[:, None])

    def angles(positions: jax.Array, local: bool, lengths: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        rope = config.local_rope if local else config.rope
        return rotary_angles(positions, config.rope_head_dim, rope, longest if lengths is None else lengths[..., None, None])

    kinds = sorted({kind.local for kind in config.layer_kinds})
    own = kinds if len(kinds) == 2 and config.local_rope != config.rope else kinds[:1]
    is_turned = table is not None and spec() is None  # to [1, B], for `once`
    tokens = [x.T for x in tokens] if is_turned else tokens
    rotary = once(lambda positions, *rest: {local: angles(positions, local, *rest) for local in own}, *tokens)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rotary) if is_turned else rotary
