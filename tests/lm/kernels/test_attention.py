"""Attention by blocks against the reference, and that against a plain twin and transformers' eager code."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm.kernels import attention as kernel
from lm.kernels.attention import Branches, Scoring, Visible
from lm.kernels.ops import attention, cached_attention
from lm.kernels.reference import masked_attention
from lm.parallel.mesh import make_mesh, spec
from tests.lm.kernels.draws import normal
from tests.slow import all_but

SIZES = [(1, "float32"), (20, "float32"), (300, "float32"), (300, "bfloat16")]

B, G, R, K = 2, 2, 3, 8
SCALE = 0.3
ALL = dict(window=100, softcap=1.5, sinks=True)
OFTEN = ("window", "one key head, window, softcap, sinks", "a key head a query head, long values")
CASES = {
    "plain": {},
    "window": dict(window=100),
    "window of a block": dict(window=128),
    "window of one": dict(window=1),
    "window of all": dict(window=300),
    "softcap": dict(softcap=1.5),
    "sinks": dict(sinks=True),
    "window, softcap, sinks": ALL,
    "one key head": dict(G=1, R=6),
    "one key head, window, softcap, sinks": dict(ALL, G=1, R=6, V=5),
    "a key head a query head, long values": dict(G=6, R=1, V=12),
}


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """The compiled attention has tests of its own (tests/lm/kernels/dense)."""
    monkeypatch.setenv("LMCRAFT_KERNELS", "attention=blocks")


def example(T, S=None, dtype="float32", G=G, R=R, V=K, sinks=False, **_):
    """q, k, v, sinks or None, cotangent; the two rows have three documents and padding, and one document."""
    S = S or T
    shapes = (B, T, G * R, K), (B, S, G, K), (B, S, G, V), (G * R,), (B, T, G * R, V)
    q, k, v, s, cotangent = (normal(5 * T + n, shape) for n, shape in enumerate(shapes))
    return *(x.astype(dtype) for x in (q, k, v)), s + 1 if sinks else None, cotangent.astype(dtype)


def segments_of(S):
    """Documents of uneven length, then padding: a row of several and a row of one."""
    rows = [np.searchsorted([S // 5, S // 2, S - 3], np.arange(S), side="right") + 1, np.arange(S) < S - 7]
    return (np.stack(rows) % 4).astype(np.int32) if S > 1 else np.ones((B, 1), np.int32)


def in_rows(segments):
    """What tokens of packed rows see."""
    return Visible(segments, segments, jnp.arange(segments.shape[1]))


def numpy_mask(segments, window=0):
    T = segments.shape[1]
    distance = np.arange(T)[:, None] - np.arange(T)
    return (distance >= 0) & (distance < (window or T)) & (segments[:, :, None] == segments[:, None, :])


def plain(q, k, v, sinks, mask, softcap=0.0):
    """Every query head with keys and values of its own, a sink as one more key whose value is 0."""
    H = q.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), H // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q.astype(jnp.float32), k, precision="highest") * SCALE
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    if sinks is not None:
        scores = jnp.concatenate((jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1)), scores), axis=-1)
        v = jnp.pad(v, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1), v, precision="highest")


def values_and_gradients(f, q, k, v, sinks, cotangent):
    out, vjp = jax.vjp(f, q, k, v, sinks)
    return [x for x in (out, *vjp(cotangent.astype(out.dtype))) if x is not None]


def blocked(window=0, softcap=0.0, **_):
    """The blocked kernel as a function of q, k, v, sinks, with packed rows of their length."""

    def f(q, k, v, sinks):
        visible = in_rows(jnp.asarray(segments_of(q.shape[1])))
        return attention(q, k, v, visible, Scoring(SCALE, window, softcap), sinks)

    return f


def reference(window=0, softcap=0.0, **_):
    def f(q, k, v, sinks):
        mask = numpy_mask(segments_of(q.shape[1]), window)
        return masked_attention(q, k, v, mask, Scoring(SCALE, softcap=softcap), sinks)

    return f


def assert_same(left, right, tolerance=1e-5):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", all_but(OFTEN, CASES))
def test_blocks_equal_the_reference(case):
    case = CASES[case]
    inputs = example(300, **case)
    both = jax.jit(lambda *x: (values_and_gradients(blocked(**case), *x), values_and_gradients(reference(**case), *x)))
    assert_same(*both(*inputs))


@pytest.mark.parametrize("case", [{}, ALL], ids=["plain", "window, softcap, sinks"])
@pytest.mark.parametrize(("T", "dtype"), all_but([(20, "float32"), (300, "bfloat16")], SIZES))
def test_blocks_equal_the_plain_twin(case, T, dtype):
    inputs = example(T, dtype=dtype, **case)
    mask = numpy_mask(segments_of(T), case.get("window", 0))

    @jax.jit
    def both(*x):
        twin = lambda *x: plain(*x, mask, case.get("softcap", 0.0))  # noqa: E731
        return values_and_gradients(blocked(**case), *x), values_and_gradients(twin, *x)

    ours, twin = both(*inputs)
    assert [x.dtype for x in ours] == [dtype] * 4 + ["float32"] * len(ours[4:])
    assert_same(ours[:4], twin[:4], 1e-5 if dtype == "float32" else 5e-2)
    # A sum over all tokens, which rounding to bfloat16 leaves farther off.
    assert_same(ours[4:], twin[4:], 1e-4 if dtype == "float32" else 0.3)


INSIDE = [
    (T, dtype, case) for T, dtype in ((1, "float32"), (4, "float32"), (1, "bfloat16")) for case in ({}, dict(ALL, window=5))
]


@pytest.mark.parametrize(("T", "dtype", "case"), all_but([INSIDE[0], INSIDE[3], INSIDE[5]], INSIDE), ids=str)
def test_queries_inside_a_cache(T, dtype, case):
    """bfloat16: of the queries alone, to keys that are kept in float32."""
    S, slot, window = 16, 9, case.get("window", 0)
    q, k, v, sinks, _ = example(T, S, **case)
    key_segments = np.ones((B, S), np.int32)
    key_segments[1, :4] = 0  # left padding
    slots = slot + np.arange(T)
    mask = (np.arange(S) <= slots[:, None]) & (slots[:, None] - np.arange(S) < (window or S)) & (key_segments[:, None] == 1)
    given = Visible(jnp.ones((B, T), jnp.int32), jnp.asarray(key_segments), jnp.asarray(slots))
    np.testing.assert_array_equal(given.mask(window), mask)
    softcap = case.get("softcap", 0.0)

    @jax.jit
    def both(q, k, v, sinks):
        kept = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        out = cached_attention(q, [kept], given, Scoring(SCALE, window, softcap), sinks)
        reference = masked_attention(q, k, v, mask, Scoring(SCALE, softcap=softcap), sinks)
        return out, reference, plain(q.astype(jnp.float32), k, v, sinks, mask, softcap)

    out, reference, twin = both(q.astype(dtype), k, v, sinks)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(np.float32(out), twin, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(np.float32(reference), twin, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", [{}, ALL], ids=["plain", "window, softcap, sinks"])
def test_large_scores_and_rows_that_see_nothing_stay_finite(case):
    q, k, v, sinks, cotangent = example(20, **case)
    segments = segments_of(20)
    visible = in_rows(jnp.asarray(segments))._replace(segments_BT=jnp.asarray(segments).at[1, 3:9].set(99))

    @jax.jit
    def run(q, k, v, sinks, cotangent):
        scoring = Scoring(SCALE, softcap=case.get("softcap", 0.0))
        few = visible._replace(segments_BT=visible.segments_BT[:, :9], slots_T=visible.slots_T[:9])
        kept = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        cached = cached_attention(q[:, :9], [kept], few, scoring, sinks)

        def call(q, k, v, sinks):
            return attention(q, k, v, visible, scoring, sinks)

        return cached, values_and_gradients(call, q, k, v, sinks, cotangent)

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(1e3 * q, k, v, sinks, cotangent)))


def test_keys_before_the_window_are_not_looked_at():
    q, k, v, _, cotangent = example(512)
    k, v = (x.at[:, :128].set(np.nan) for x in (k, v))
    visible = in_rows(jnp.ones((B, 512), jnp.int32))
    # The first block of queries sees those keys; the second begins with queries that do.
    seen = cotangent.at[:, :256].set(0)
    f = jax.jit(lambda *x: values_and_gradients(lambda q, k, v, _: attention(q, k, v, visible, Scoring(SCALE, 100)), *x))
    out, dq, dk, dv = f(q, k, v, None, seen)
    assert np.isnan(out[:, :128]).all() and np.isfinite(out[:, 256:]).all()
    assert np.isfinite(dq[:, 256:]).all() and np.isfinite(dk[:, 256:]).all() and np.isfinite(dv[:, 256:]).all()


def test_work_grows_with_the_window_and_not_with_the_square_of_the_length():
    @functools.cache
    def flops(T, window):
        inputs = jax.eval_shape(lambda: (jnp.ones((B, T), jnp.int32), *example(T)))
        f = lambda segments, *x: values_and_gradients(  # noqa: E731
            lambda q, k, v, _: attention(q, k, v, in_rows(segments), Scoring(SCALE, window)), *x
        )
        return jax.jit(f).lower(*inputs).cost_analysis()["flops"]

    assert flops(2048, 128) < 2.2 * flops(1024, 128)
    assert flops(2048, 0) > 3.5 * flops(1024, 0)
    assert flops(2048, 128) < 0.3 * flops(2048, 0)


@pytest.mark.parametrize("T", all_but([300], [300, 3400]))
@pytest.mark.parametrize("meshed", [False, True], ids=["no mesh", "a mesh of one device"])
def test_rows_with_many_scores_equal_each_row_alone(meshed, T, monkeypatch):
    """Scores of two rows of 3,400 tokens and 6 heads, 555 MB, are above what is computed at a time; those of a row are not."""
    if T < 3400:
        monkeypatch.setattr(kernel, "SCORES", int(1.5 * 4 * G * R * T**2))
    mesh = make_mesh({}, jax.devices()[:1]) if meshed else None
    *inputs, cotangent = example(T, softcap=1.5, sinks=True)
    branches = Branches(*(jnp.asarray(np.broadcast_to(x, (B, T))) for x in (np.full(T, T), np.arange(T), np.arange(T))))
    chosen = jnp.asarray((np.random.default_rng(0).random((B, T, T)) < 0.5) | np.eye(T, dtype=bool))
    visible = in_rows(jnp.asarray(segments_of(T)))._replace(branches=branches, chosen_BTS=chosen)

    def of(rows):
        segments, keys, slots, branches, chosen = visible
        seen = Visible(segments[rows], keys[rows], slots, jax.tree.map(lambda x: x[rows], branches), chosen[rows])
        f = lambda q, k, v, sinks: attention(q, k, v, seen, Scoring(SCALE, softcap=1.5), sinks)  # noqa: E731
        given = [*(x[rows] for x in inputs[:3]), inputs[3], cotangent[rows]]
        if mesh:
            axes = [*(("batch", "length", heads, None) for heads in ("heads", "kv_heads", "kv_heads")), ("heads",)]
            given = [jax.device_put(x, NamedSharding(mesh, spec(*names))) for x, names in zip(given, [*axes, axes[0]])]
        return jax.jit(lambda *x: values_and_gradients(f, *x))(*given)

    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        *together, sinks = of(slice(None))
        (*first, sinks_0), (*second, sinks_1) = of(slice(0, 1)), of(slice(1, 2))
    assert_same(together, [np.concatenate(pair) for pair in zip(first, second, strict=True)], 1e-6)
    np.testing.assert_allclose(sinks, sinks_0 + sinks_1, rtol=1e-4)


def test_scores_of_many_rows_are_not_in_memory_at_once():
    shapes = [jax.ShapeDtypeStruct((64, 2048, heads, K), jnp.float32) for heads in (G * R, G, G)]
    segments = jax.ShapeDtypeStruct((64, 2048), jnp.int32)
    f = jax.jit(lambda segments, *x: attention(*x, in_rows(segments), Scoring(SCALE)))
    memory = f.lower(segments, *shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5e9  # all scores are 6.4 GB


@pytest.mark.parametrize("window", [0, 40])
def test_branches_see_what_they_begin_with_and_not_one_another(window):
    """Rows of a beginning of 100 tokens and two continuations; a window counts from a token's place in its own text."""
    T, begin, middle = 300, 100, 180
    q, k, v, _, _ = example(T)
    slots = np.arange(T)
    places = np.where(slots < middle, slots, slots - (middle - begin))
    ends = np.where((slots >= begin) & (slots < middle), middle, T)
    distance = places[:, None] - places
    mask = (slots <= slots[:, None]) & (slots[:, None] < ends) & (distance < (window or T))
    mask = np.broadcast_to(mask, (B, T, T))
    both = (jnp.asarray(np.broadcast_to(x, (B, T))) for x in (ends, places, places))
    visible = in_rows(jnp.ones((B, T), jnp.int32))._replace(branches=Branches(*both))

    @jax.jit
    def run(q, k, v):
        kept = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        return (
            attention(q, k, v, visible, Scoring(SCALE, window)),
            cached_attention(q, [kept], visible, Scoring(SCALE, window)),
            masked_attention(q, k, v, jnp.asarray(mask), Scoring(SCALE)),
        )

    alone, to_cache, twin = run(q, k, v)
    np.testing.assert_allclose(alone, twin, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(to_cache, twin, atol=1e-5, rtol=1e-5)


def test_eight_devices_equal_one():
    rows = [np.concatenate([x] * 4) if x.ndim > 1 else x for x in example(300, V=5, **ALL)]
    segments = np.concatenate([segments_of(300)] * 4)

    def f(segments, *x):
        def call(q, k, v, sinks):
            return attention(q, k, v, in_rows(segments), Scoring(SCALE, ALL["window"], ALL["softcap"]), sinks)

        return values_and_gradients(call, *x)

    alone = jax.jit(f)(segments, *rows)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    axes = [("batch", "length", heads, None) for heads in ("heads", "kv_heads", "kv_heads")]
    axes = [("batch", "length"), *axes, ("heads",), axes[0]]
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, NamedSharding(mesh, spec(*names))) for x, names in zip((segments, *rows), axes, strict=True)]
        together = jax.jit(f)(*put)
        wanted = [axes[1], *axes[1:5]]
        for x, names in zip(together, wanted, strict=True):
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec(*names)), x.ndim)
    assert_same(together, alone, 1e-4)


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_reference_equals_transformers(family):
    """gpt-oss has sinks and Gemma 2 soft-capped scores; gradients as well."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    case = dict(sinks=True) if family == "gpt_oss" else dict(softcap=1.5)
    case["window"] = 6
    inputs = example(20, **case)
    leaves = [None if x is None else torch.tensor(np.asarray(x), requires_grad=True) for x in inputs[:4]]
    q, k, v, sinks = leaves
    mask = torch.tensor(numpy_mask(segments_of(20), 6))[:, None]
    module = types.SimpleNamespace(num_key_value_groups=R, sinks=sinks, training=False)
    added = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
    kwargs = {} if family == "gpt_oss" else dict(softcap=1.5)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, _ = modeling.eager_attention_forward(module, q, k, v, added, scaling=SCALE, **kwargs)
    out.backward(torch.tensor(np.asarray(inputs[4])))
    theirs = [out.detach(), *(x.grad for x in leaves if x is not None)]
    ours = jax.jit(lambda *x: values_and_gradients(reference(**case), *x))
    assert_same(ours(*inputs), [x.numpy() for x in theirs])
