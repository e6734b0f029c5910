"""Training with int8 and float8 products: it learns as without them, on any mesh, and however layers are compiled."""

import functools

import numpy as np
import pytest

from lm.convert.source import config_of
from tests.lm.examples import tiny_config
from tests.lm.train.test_meshes import run
from tests.slow import all_but

STEPS = 8
# Losses of one device and of meshes differ because the gradients of weights are rounded with scales of each device.
NEAR = {"int8": 5e-4, "float8": 2e-3}
RUNS = {
    "fsdp 8": ({"fsdp": 8}, 1, {}),
    "fsdp 4, tensor 2": ({"fsdp": 4, "tensor": 2}, 1, {}),
    "data 2, fsdp 2, tensor 2, accumulate 4": ({"data": 2, "fsdp": 2, "tensor": 2}, 4, {}),
    "context 2, fsdp 2, tensor 2": ({"context": 2, "fsdp": 2, "tensor": 2}, 1, {}),
    "stage 2, fsdp 2, tensor 2": ({"stage": 2, "fsdp": 2, "tensor": 2}, 1, {}),
    "unrolled": ({}, 1, dict(scan_layers=False)),
    "remat full": ({}, 1, dict(remat="full")),
    "remat none": ({}, 1, dict(remat="none")),
}
QUICK = [("data 2, fsdp 2, tensor 2, accumulate 4", "int8")]


@functools.cache
def losses(kind):
    """Losses of one device."""
    return run({}, 1, steps=STEPS, quantized_training=kind)[0][:, 0]


@pytest.mark.parametrize("kind", all_but(["int8"], NEAR))
def test_losses_as_with_exact_products(kind):
    assert not np.array_equal(losses(kind), losses("none")) and losses(kind)[-1] < losses(kind)[0]
    np.testing.assert_allclose(losses(kind), losses("none"), rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), all_but(QUICK, [(name, kind) for name in RUNS for kind in NEAR]))
def test_as_on_one_device(name, kind):
    sizes, accumulate, model = RUNS[name]
    found = run(sizes, accumulate, steps=STEPS, quantized_training=kind, **model)[0]
    np.testing.assert_allclose(found[:, 0], losses(kind), rtol=0, atol=NEAR[kind])


def test_what_reads_a_run_computes_in_its_dtype():
    assert config_of(tiny_config(quantized_training="int8").to_dict()).quantized_training == "none"
