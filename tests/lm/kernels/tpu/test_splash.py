"""Splash attention, run by Pallas' interpreter on this CPU, against the reference twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.attention import Scoring, Visible
from lm.kernels.reference import masked_attention
from lm.kernels.tpu import attention
from lm.kernels.tpu.attention import attention as splash_attention
from lm.kernels.tpu.attention import kernel_flops
from lm.parallel.mesh import make_mesh, reshard
from tests.lm.kernels.draws import normal
from tests.slow import all_but

CASES = {
    "one kernel for all gradients": dict(fused=True),
    "grouped heads": dict(),
    "window and soft-cap": dict(window=40, softcap=5.0),
    "sinks": dict(sinks=True),
    "window, soft-cap and sinks": dict(window=40, softcap=5.0, sinks=True),
    "a length that is no multiple of a block": dict(T=150),
    "other sizes of keys and values": dict(K=192, V=128, G=4),
}


def example(T=128, H=4, G=2, K=64, V=64, rows=2):
    q, k, v = (normal(n, (rows, T, heads, size)) for n, heads, size in ((0, H, K), (1, G, K), (2, G, V)))
    segments = jnp.asarray(np.repeat([[1, 2, 0]], rows, axis=0).repeat([T // 3, T // 2, T - T // 3 - T // 2], axis=1))
    return q, k, v, segments, normal(3, (H,)), normal(4, (rows, T, H, V))


def in_rows(segments) -> Visible:
    return Visible(segments, segments, jnp.arange(segments.shape[1]))


OFTEN = list(CASES)[:1] + list(CASES)[4:]  # what the others show is in these


@pytest.mark.parametrize("name", all_but(OFTEN, CASES))
def test_values_and_gradients_are_those_of_the_reference(name, monkeypatch):
    case = dict(CASES[name])
    if case.pop("fused", False):
        monkeypatch.setattr(attention, "WIDE", 32)
        monkeypatch.setattr(attention, "_blocks", lambda length: (128, 128))
        case["T"] = 256
    scoring = Scoring(0.1, case.pop("window", 0), case.pop("softcap", 0.0))
    with_sinks = case.pop("sinks", False)
    q, k, v, segments, sinks, weights = example(**case)
    sinks = sinks if with_sinks else None
    weights = weights * (segments > 0)[..., None, None]  # padding has no defined result

    def ours(q, k, v, sinks):
        out = splash_attention(q, k, v, in_rows(segments), scoring, sinks, interpret=True)
        return jnp.sum(out * weights), out

    def theirs(q, k, v, sinks):
        out = masked_attention(q, k, v, in_rows(segments).mask(scoring.window), scoring, sinks)
        return jnp.sum(out * weights), out

    which = (0, 1, 2, 3) if with_sinks else (0, 1, 2)
    gradients, out = jax.jit(jax.grad(ours, which, has_aux=True))(q, k, v, sinks)
    wanted, expected = jax.jit(jax.grad(theirs, which, has_aux=True))(q, k, v, sinks)
    seen = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(out)[seen], np.asarray(expected)[seen], atol=2e-5)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_rows_and_heads_on_eight_devices_as_on_one():
    q, k, v, segments, _, _ = example(rows=4)
    alone = splash_attention(q, k, v, in_rows(segments), Scoring(0.1), interpret=True)
    with jax.set_mesh(make_mesh(dict(data=2, fsdp=2, tensor=2))):
        placed = (reshard(x, "batch", None, axis, None) for x, axis in ((q, "heads"), (k, "kv_heads"), (v, "kv_heads")))
        call = jax.jit(lambda q, k, v, segments: splash_attention(q, k, v, in_rows(segments), Scoring(0.1), interpret=True))
        out = call(*placed, reshard(segments, "batch", None))
    np.testing.assert_allclose(out, alone, atol=1e-6)


def test_flops_of_a_kernel_are_those_of_the_blocks_that_it_computes():
    text = 'op_name="jit(step)/splash_B2_H3_T1024_K64_V32_W0/pallas_call"'
    pairs = 2 * 3 * 3 * 512 * 512  # three of four blocks of 512 are seen
    assert kernel_flops("%splash_mha_fwd_segmented.1", text) == 2 * pairs * (64 + 32)
    assert kernel_flops("%splash_mha_dq_segmented.1", text) == 2 * pairs * (2 * 64 + 32)
    assert kernel_flops("%splash_mha_dkv_segmented.1", text) == 2 * pairs * (2 * 64 + 2 * 32)
    assert kernel_flops("%other", text) == kernel_flops("%splash_mha_fwd", "") == 0
    # In long rows one kernel computes all gradients, and 2,048 keys are a block: 4 + 8 + 12 + 16 of 16 × 4 blocks are seen.
    long = text.replace("T1024", "T8192")
    assert kernel_flops("%splash_mha_dkv_segmented.1", long) == 2 * 2 * 3 * 40 * 512 * 2048 * (3 * 64 + 2 * 32)
    near = long.replace("W0", "W600")  # a query sees its own block of 512 and those of the 599 places before it
    assert kernel_flops("%splash_mha_fwd_segmented.1", near) == 2 * 2 * 3 * (1 + 2 + 3 * 14) * 512 * 512 * (64 + 32)
