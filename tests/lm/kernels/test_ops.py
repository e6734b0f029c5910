"""The door: every operation has its twin, a backend can be forced, and a whole model computes the same by the twins."""

import importlib

import numpy as np
import pytest

from lm.errors import UserError
from lm.kernels import ops, reference
from tests.lm.kernels.draws import normal
from tests.lm.train.test_meshes import run
from tests.slow import all_but


def test_every_operation_has_backends_and_a_twin_of_its_name():
    for operation, backends in ops.TABLE.items():
        assert callable(getattr(ops, operation)) and callable(getattr(reference, operation))
        for backend in backends:
            if backend.on not in ("gpu", "tpu"):  # which import Pallas
                assert callable(getattr(importlib.import_module(f"lm.kernels.{backend.module}"), operation)), backend


def test_a_forced_backend_serves(monkeypatch):
    x, w = normal(0, (2, 8, 16)), normal(1, (16, 24))
    how = dict(dtype="float32", out=("batch", "length", None))
    monkeypatch.setattr(ops, "_served", {})
    plain = ops.matmul("btd,df->btf", x, w, **how)
    assert ops.summary().startswith("matmul mixed precision, product ")
    monkeypatch.setenv(ops.VARIABLE, "matmul=reference")
    np.testing.assert_allclose(ops.matmul("btd,df->btf", x, w, **how), plain, rtol=1e-6)
    served = ops.summary().split(", ")[0]
    assert served.startswith("matmul ") and {"mixed precision", "reference"} <= set(served.removeprefix("matmul ").split("/"))


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ("plain", "plain is no operation; use reference, or one of matmul"),
        ("attention=best", "attention has no backend 'best'; it has ring, splash, triton, alone, compiled, blocks, reference"),
        ("attention=splash", "--kernels=attention=splash: it does not compute this call on a cpu; leave it out"),
    ],
)
def test_what_cannot_be_forced_is_refused(choice, line, monkeypatch):
    monkeypatch.setenv(ops.VARIABLE, choice)
    with pytest.raises(UserError, match=line):
        ops.attention()


MODELS = {
    "dense": {},
    "window, soft cap": dict(window=7, attention_softcap=5.0, logit_softcap=5.0),
    "experts, latents": dict(
        num_kv_heads=4,
        mlp_pattern=("moe",),
        moe=dict(num_experts=4, expert_dim=16, shared_dim=16),
        mla=dict(kv_rank=16, query_rank=8, rope_head_dim=4, value_head_dim=8),
    ),
}
CASES = [("window, soft cap", {}), ("experts, latents", {}), ("dense", {"context": 2, "fsdp": 2, "tensor": 2})]


@pytest.mark.parametrize(("name", "sizes"), all_but(CASES[:1], CASES))
def test_training_by_the_twins_is_the_same(name, sizes, monkeypatch):
    fast = run(sizes, 1, steps=2, **MODELS[name])[0]
    monkeypatch.setenv(ops.VARIABLE, "reference")
    plain = run(sizes, 1, steps=2, **MODELS[name])[0]
    np.testing.assert_allclose(plain, fast, rtol=2e-5)
