"""The number of pages that an engine gets when nobody names one."""

import dataclasses
import types

import pytest

from lm.config import ModelConfig
from lm.infer.engine import room
from lm.model.pages import page_bytes

SMALL = ModelConfig(  # SmolLM2-135M
    vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, mlp_dim=1536, max_positions=8192
)
LARGE = dataclasses.replace(SMALL, embed_dim=2048, num_heads=32, num_kv_heads=32)
GB = 10**9


@pytest.mark.parametrize(
    "config, dtype, rows, free, wanted",
    [
        (SMALL, "float32", 32, 16 * GB, (1 << 30) // (30 * 16 * 2 * 3 * 64 * 4)),  # 1 GiB
        (SMALL, "bfloat16", 32, 1000 * GB, (1 << 30) // (30 * 16 * 2 * 3 * 64 * 2)),  # however much is free
        (SMALL, "float32", 1, 1000 * GB, 8192 // 16),  # one request needs no more
        (LARGE, "float32", 32, 1000 * GB, 32 * 512 // 16),  # 32 typical requests
        (LARGE, "float32", 4, 1000 * GB, 8192 // 16),  # one of full length
        (LARGE, "float32", 32, 4 * GB, GB // (30 * 16 * 2 * 32 * 64 * 4)),  # a quarter of the free memory
        (SMALL, "float32", 32, GB, GB // 4 // (30 * 16 * 2 * 3 * 64 * 4)),
    ],
)
def test_default_pages_are_bounded(monkeypatch, config, dtype, rows, free, wanted):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))
    monkeypatch.setattr(room.jax, "default_backend", lambda: "cpu")
    count = room.default_pages(config, room.Capacity(rows, cache_dtype=dtype))
    assert count == wanted
    assert count * page_bytes(config, 16, dtype) <= max(1 << 30, free // 4)


@pytest.mark.parametrize(("context", "tokens"), [(256, 8192), (512, 32 * 512), (10**6, 32 * 8192)])
def test_a_server_has_pages_for_the_context_of_its_rows(monkeypatch, context, tokens):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000 * GB))
    monkeypatch.setattr(room.jax, "default_backend", lambda: "cpu")
    assert room.default_pages(SMALL, room.Capacity(32, cache_dtype="bfloat16", context=context)) * 16 == tokens


def test_an_accelerator_gives_most_of_its_own_memory(monkeypatch):
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 11 * GB, "bytes_in_use": GB})
    monkeypatch.setattr(room.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(room.jax, "local_devices", lambda: [device])
    assert room.default_pages(LARGE, room.Capacity(cache_dtype="bfloat16")) == 9 * GB // page_bytes(LARGE, 16, "bfloat16")
