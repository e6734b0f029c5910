"""Where the kernels of training run, and how many FLOPs they count as."""

import ctypes
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lm.kernels.attention import Scoring, Visible
from lm.kernels.dense.attention import attention as flash_attention
from lm.kernels.dense.flops import flops
from lm.kernels.dense.large import product as large_product
from lm.kernels.dense.usable import multiplied, usable
from lm.parallel.mesh import make_mesh

CPU = Path("/proc/cpuinfo")
FLAGS = CPU.read_text().split() if CPU.exists() else []


@pytest.mark.skipif("avx2" not in FLAGS or "NUMBA_CPU_NAME" in os.environ, reason="no AVX2, or limited")
def test_a_processor_uses_what_it_has_on_one_device():
    assert multiplied() == (("float32", "bfloat16") if "avx512_bf16" in FLAGS else ("float32",))
    assert all(usable(module, dtype) for module in ("gemm", "flash") for dtype in multiplied())
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        assert not usable("gemm", "float32") and not usable("flash", "float32")


@pytest.mark.skipif(
    "amx_bf16" not in FLAGS or ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0, reason="no AMX, or Linux refuses it"
)
def test_bfloat16_takes_the_tile_registers_where_there_are_some():
    from lm.kernels.dense.tiling import TILES

    assert TILES or "NUMBA_CPU_NAME" in os.environ


def test_elsewhere_the_functions_name_what_they_need():
    x = jnp.ones((1, 64, 1, 32), jnp.bfloat16)
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        with pytest.raises(ValueError, match="needs a processor that multiplies bfloat16 and a mesh of one device"):
            ones = jnp.ones((1, 64), jnp.int32)
            flash_attention(x, x, x, Visible(ones, ones, jnp.arange(64)), Scoring(1.0))
        with pytest.raises(ValueError, match="needs a processor that multiplies float32 and a mesh of one device"):
            large_product("btgk,kn->btgn", x, jnp.ones((32, 32)), dtype="float32")


@pytest.mark.parametrize("window", (0, 1, 100, 700))
@pytest.mark.parametrize("T", (9, 256, 777, 1500))
def test_attention_counts_the_visible_pairs_and_little_more(T, window):
    """K and V are 1, so a forward pass has two products of a number for each pair, and a backward pass five."""
    visible = sum(min(t + 1, window or T) for t in range(T))
    q, logz = (1, T, 1, 1), (1, 1, T)
    forward = flops("lm_flash", (q, q, q, (1, T)), (q, logz), window)
    backward = flops("lm_flash_gradients", (q, q, q, (1, T), q, logz, q), (q, q, q), window)
    assert 0 <= forward / 4 - visible <= (T + 32) * 64
    assert 0 <= backward / 10 - visible <= (T + 128) * 256


def test_products_count_as_they_are():
    assert flops("lm_gemm", ((7, 5), (5, 3)), ((7, 3), (1,))) == flops("lm_gemm", ((5, 7), (3, 5)), ((7, 3), (1,))) == 210
    assert flops("lm_row_sums", ((7, 5),), ((7,),)) == 0
