"""Which cases the GPU kernel computes, and the kernel, interpreted on the CPU, against the plain reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.kernels.attention import Scoring, Visible
from lm.kernels.gpu.attention import attention as gpu_attention
from lm.kernels.gpu.attention import takes
from lm.kernels.reference import masked_attention
from lm.parallel.mesh import make_mesh, reshard
from tests.slow import all_but

CASE = dict(dtype="bfloat16", length=2048, key_size=64, value_size=64, window=0, softcap=0.0)
SIZES = ("key_size", "key_size", "value_size")


@pytest.mark.parametrize(
    ("change", "yes"),
    [
        ({}, True),
        ({"dtype": "float16", "key_size": 128, "value_size": 128}, True),
        ({"window": 512}, False),
        ({"softcap": 50.0}, False),
        ({"length": 100}, False),
        ({"key_size": 256, "value_size": 256}, False),
        ({"key_size": 128}, False),
        ({"dtype": "float32"}, False),
    ],
)
def test_which_cases_the_kernel_computes(change, yes):
    case = CASE | change
    segments, scoring = jnp.ones((1, case["length"])), Scoring(1.0, case["window"], case["softcap"])
    q, k, v = (jax.ShapeDtypeStruct((1, case["length"], 2, case[size]), case["dtype"]) for size in SIZES)
    assert takes(q, k, v, Visible(segments, segments, jnp.arange(case["length"])), scoring) is yes


def example(B, T, H, G, K):
    rng = np.random.default_rng(0)
    q, k, v, w = (jnp.asarray(rng.normal(size=(B, T, n, K)), jnp.float32) for n in (H, G, G, H))
    # Two documents of different lengths and padding in each row.
    ends = rng.integers(1, T // 2, size=(B, 1))
    slots = np.arange(T)[None]
    segments = jnp.asarray(np.where(slots < ends, 1, np.where(slots < T - 9, 2, 0)), jnp.int32)
    return q, k, v, w, segments


CASES = [(2, 2, None), (4, 2, None), (4, 2, {"data": 2, "fsdp": 2, "tensor": 2})]


@pytest.mark.parametrize(("H", "G", "mesh"), all_but([CASES[2]], CASES))
def test_triton_is_as_the_reference(H, G, mesh):
    q, k, v, w, segments = example(4, 128, H, G, 32)
    mask = Visible(segments, segments, jnp.arange(128)).mask()

    def kernel(q, k, v):
        q, k, v = reshard(q, "batch", None, "heads", None), *(reshard(x, "batch", None, "kv_heads", None) for x in (k, v))
        rows = reshard(segments, "batch", None)
        out = gpu_attention(q, k, v, Visible(rows, rows, jnp.arange(128)), Scoring(0.2), interpret=True)
        return jnp.sum(reshard(out, None, None, None, None) * w), out

    def reference(q, k, v):
        out = masked_attention(q, k, v, mask, Scoring(0.2))
        return jnp.sum(out * w), out

    expected, expected_grads = out_and_grads(reference, q, k, v)
    if mesh is None:
        found, grads = out_and_grads(kernel, q, k, v)
    else:
        with jax.set_mesh(make_mesh(mesh)):
            found, grads = out_and_grads(kernel, q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def out_and_grads(f, *arguments):
    (_, out), grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(*arguments)
    return out, grads
