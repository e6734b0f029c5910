"""Where AMX is used, and how many FLOPs its functions count as."""

import ctypes
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lm.kernels.amx.attention import attention as flash_attention
from lm.kernels.amx.flops import flops
from lm.kernels.amx.large import product as large_product
from lm.kernels.amx.usable import has_tiles, tiled
from lm.kernels.attention import Scoring, Visible
from lm.parallel.mesh import make_mesh

CPU = Path("/proc/cpuinfo")
FLAGGED = CPU.exists() and "amx_bf16" in CPU.read_text()


@pytest.mark.skipif(not FLAGGED or ctypes.CDLL(None).syscall(158, 0x1023, 18) != 0, reason="no AMX, or Linux refuses it")
def test_a_processor_with_amx_uses_it_on_one_device():
    assert has_tiles() and tiled("gemm") and tiled("flash")
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        assert not tiled("gemm") and not tiled("flash")


def test_elsewhere_the_functions_name_what_they_need():
    x = jnp.ones((1, 64, 1, 32), jnp.bfloat16)
    with jax.set_mesh(make_mesh({"data": 2}, jax.devices()[:2])):
        with pytest.raises(ValueError, match="needs a processor with AMX and a mesh of one device"):
            ones = jnp.ones((1, 64), jnp.int32)
            flash_attention(x, x, x, Visible(ones, ones, jnp.arange(64)), Scoring(1.0))
        with pytest.raises(ValueError, match="needs a processor with AMX and a mesh of one device"):
            large_product("btgk,kn->btgn", x, jnp.ones((32, 32)), None)


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
