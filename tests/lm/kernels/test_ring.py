"""Attention over a context axis is that of one device, however keys reach the queries; forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.kernels import tiles
from lm.kernels.attention import Scoring, Visible
from lm.kernels.ops import attention
from lm.parallel.context import slots
from lm.parallel.mesh import make_mesh, spec
from tests.slow import all_but

B, T, G, R, K, V = 2, 64, 2, 2, 8, 12
SCALE = 0.3
AXES = [("batch", "length", name, None) for name in ("heads", "kv_heads", "kv_heads")]
AXES = [*AXES, ("batch", "length"), ("heads",), AXES[0]]
CASES = {
    "plain": {},
    "window 5": dict(window=5),
    "window 20": dict(window=20, softcap=2.0),
    "window of all": dict(window=T),
    "softcap and sinks": dict(softcap=2.0, sinks=True),
    "window, softcap, sinks": dict(window=9, softcap=2.0, sinks=True),
}
MESHES = {
    "context 8": dict(context=8),
    "context 4, tensor 2": dict(context=4, tensor=2),
    "data 2, context 2, tensor 2": dict(data=2, context=2, tensor=2),
    "context 2, fsdp 2, expert 2": dict(context=2, fsdp=2, expert=2),
}


def example(rows=4):
    """q, k, v, segments, sinks and the cotangent of the result."""
    rng = np.random.default_rng(0)
    shapes = ((rows, T, G * R, K), (rows, T, G, K), (rows, T, G, V), (G * R,), (rows, T, G * R, V))
    q, k, v, sinks, dout = (rng.standard_normal(shape, np.float32) for shape in shapes)
    segments = np.stack([np.sort(rng.integers(1, 4, T)) for _ in range(rows)]).astype(np.int32)
    segments[0], segments[1, -7:] = 1, 0
    return q, k, v, segments, sinks, dout


def results(call, q, k, v, segments, sinks, dout):
    out, pullback = jax.vjp(lambda *x: call(*x[:3], segments, x[3]), q, k, v, sinks)
    return out, *pullback(dout)


def alone(q, k, v, segments, sinks, *, window=0, softcap=0.0, with_sinks=False):
    visible = Visible(segments, segments, jnp.arange(T))
    return attention(q, k, v, visible, Scoring(SCALE, window, softcap), sinks if with_sinks else None)


def split(q, k, v, segments, sinks, *, across, window=0, softcap=0.0, with_sinks=False):
    visible = Visible(segments, segments, slots(T))
    return attention(q, k, v, visible, Scoring(SCALE, window, softcap, across), sinks if with_sinks else None)


def compared(sizes, case, across):
    case = dict(case)
    case["with_sinks"] = case.pop("sinks", False)
    inputs = example()
    expected = jax.jit(functools.partial(results, functools.partial(alone, **case)))(*inputs)
    mesh = make_mesh(sizes)
    order = slots(T, sizes["context"])
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x[:, order] if "length" in axes else x, NamedSharding(mesh, spec(*axes)))
            for x, axes in zip(inputs, AXES, strict=True)
        ]
        found = jax.jit(functools.partial(results, functools.partial(split, across=across, **case)))(*placed)
    for ours, theirs, axes in zip(found, expected, (AXES[0], *AXES[:3], AXES[4]), strict=True):
        theirs = np.asarray(theirs)
        yield np.asarray(ours), theirs[:, order] if "length" in axes else theirs


QUICK = [("context 8", "plain", "ring"), ("context 4, tensor 2", "window, softcap, sinks", "ring")]
QUICK += [("data 2, context 2, tensor 2", "softcap and sinks", "all_gather")]


@pytest.mark.parametrize(
    "mesh, case, across", all_but(QUICK, [(m, c, a) for m in MESHES for c in CASES for a in ("ring", "all_gather")])
)
def test_as_on_one_device(mesh, case, across):
    for ours, theirs in compared(MESHES[mesh], CASES[case], across):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", all_but(["window, softcap, sinks"], ["plain", "window 20", "window, softcap, sinks"]))
@pytest.mark.parametrize("across", all_but(["ring"], ["ring", "all_gather"]))
def test_many_tiles_give_what_one_gives(case, across, monkeypatch):
    """Tiles of 4 tokens, of chunks of 16."""
    monkeypatch.setattr(tiles, "TILE", 4)
    for ours, theirs in compared(dict(context=2, data=4), CASES[case], across):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_tiles_that_no_query_sees_are_left_out(monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 4)
    assert len(tiles.pairs(16, 16, tiles.How(1.0, 0, 0.0, 0))[0]) == 10  # causal: on the diagonal and below
    assert len(tiles.pairs(16, 8, tiles.How(1.0, 0, 0.0, 16))[0]) == 8  # later than all keys
    assert len(tiles.pairs(16, 16, tiles.How(1.0, 5, 0.0, 0))[0]) == 7  # a window of its own tile and the last
    assert len(tiles.pairs(16, 16, tiles.How(1.0, 5, 0.0, 16))[0]) == 1  # of the chunk before only the last tile
    assert (tiles.size(16), tiles.size(21), tiles.size(13)) == (4, 3, 13)
