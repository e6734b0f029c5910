"""dtype=auto, accumulate=0 and optimizer.turns=0: what they stand for where, and that a run keeps what it began with."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from configs.train import default, tiny
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.train import chips
from lm.train.checks import keep_chosen
from lm.train.describe import product_flops
from lm.train.optimizers.muon import matrix_axes, scale_by_normuon
from lm.train.optimizers.turns import choose_turns, products
from lm.train.start import adopt, choose_slices
from lm.train.step import model_config_of
from lm.train.values import model_of


def choice(monkeypatch, flags=(), backend="cpu", **environment) -> str:
    """Return the dtype on a machine with these flags of Linux, of which the reason tells."""
    jax.devices()  # later tests want those of the true XLA_FLAGS
    for name in ("XLA_FLAGS", "NUMBA_CPU_NAME"):
        monkeypatch.setenv(name, environment.get(name, ""))
    monkeypatch.setattr(chips, "machine", lambda devices: {"flags": list(flags)})
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    return chips.dtype_here()[0]


AVX2, AVX512 = ("avx2",), ("avx2", "avx512f")
ZEN4, SAPPHIRE_RAPIDS = (*AVX512, "avx512_bf16"), (*AVX512, "avx512_bf16", "amx_bf16", "amx_tile")


@pytest.mark.parametrize(
    ("flags", "backend", "wanted"),
    [
        (AVX2, "cpu", "float32"),
        (AVX512, "cpu", "float32"),
        ((), "cpu", "float32"),  # no Linux
        (ZEN4, "cpu", "bfloat16"),
        (SAPPHIRE_RAPIDS, "cpu", "bfloat16"),
        (AVX2, "gpu", "bfloat16"),
        (AVX2, "tpu", "bfloat16"),
    ],
)
def test_the_device_decides(monkeypatch, flags, backend, wanted):
    assert choice(monkeypatch, flags, backend) == wanted


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"XLA_FLAGS": "--xla_foo=1 --xla_cpu_max_isa=AVX2"}, "float32"),
        ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX512"}, "float32"),
        ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX512_BF16"}, "bfloat16"),
        ({"NUMBA_CPU_NAME": "haswell"}, "float32"),
        ({"NUMBA_CPU_NAME": "znver4"}, "bfloat16"),
    ],
)
def test_a_limited_processor_counts_as_what_it_is_limited_to(monkeypatch, environment, wanted):
    assert choice(monkeypatch, SAPPHIRE_RAPIDS, **environment) == wanted


def test_the_choice_is_printed_once_and_recorded_and_an_explicit_dtype_wins(monkeypatch, tmp_path, capsys):
    choice(monkeypatch, AVX2)
    adopt(config := tiny.get_config(), tmp_path)
    assert config.dtype == model_config_of(config).dtype == "float32"
    assert capsys.readouterr().out == "dtype=float32, chosen for a processor without AMX and AVX-512 BF16\n"
    explicit = tiny.get_config()
    explicit.dtype = "bfloat16"
    adopt(explicit, tmp_path)
    assert explicit.dtype == "bfloat16" and not capsys.readouterr().out


@pytest.mark.parametrize("began", ["bfloat16", "float32"])
def test_a_run_keeps_the_dtype_that_it_began_with(monkeypatch, tmp_path, capsys, began):
    before = tiny.get_config()
    before.dtype = began
    (tmp_path / "config.json").write_text(json.dumps(before.to_dict()))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    choice(monkeypatch, AVX2 if began == "bfloat16" else ZEN4)
    keep_chosen(config := tiny.get_config(), tmp_path)
    adopt(config, tmp_path)
    assert config.dtype == began and not capsys.readouterr().out
    config.dtype = "float32"
    keep_chosen(config, tmp_path)
    assert config.dtype == "float32"


def test_all_hosts_take_the_choice_of_the_first(monkeypatch):
    choice(monkeypatch, AVX2)
    monkeypatch.setattr("lm.train.start.from_first", lambda make: ("bfloat16", "a processor with AMX"))
    adopt(config := tiny.get_config(), None)
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("change", "devices", "backend", "wanted"),
    [
        ({}, 1, "cpu", 4),  # 32 rows of 256 tokens
        ({}, 2, "cpu", 2),
        ({}, 1, "tpu", 1),
        ({"sequence_length": 64}, 1, "cpu", 1),
        ({"sequence_length": 4096}, 1, "cpu", 32),
        ({"batch_size": 24}, 1, "cpu", 3),
        ({"batch_warmup": "10: 6"}, 1, "cpu", 2),  # which divides 6 and 32
        ({"accumulate": 8}, 1, "cpu", 8),
    ],
)
def test_slices_fit_a_processors_caches(monkeypatch, capsys, change, devices, backend, wanted):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = default.get_config()
    config.update(change)
    said = choose_slices(config, make_mesh({"data": devices}, jax.devices()[:devices]))
    assert config.accumulate == wanted
    assert said.startswith(f"accumulate={wanted}, ") or not said and (wanted == 1 or change == {"accumulate": 8})
    assert not capsys.readouterr().out  # --describe=json prints JSON alone


def test_all_hosts_take_the_slices_and_turns_of_the_first(monkeypatch):
    for chooser in ("lm.train.start", "lm.train.optimizers.turns"):
        monkeypatch.setattr(f"{chooser}.from_first", lambda make: 16)  # which alone has the record of the run
    choose_slices(config := default.get_config(), make_mesh({"data": 1}, jax.devices()[:1]))
    choose_turns(config)
    assert (config.accumulate, config.optimizer.turns) == (16, 16)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, 2),  # 8,192 tokens a step
        ({"batch_size": 4}, 4),
        ({"batch_size": 64}, 1),
        ({"batch_size": 4, "sequence_length": 1 << 14}, 1),
        ({"batch_size": 4, "optimizer": {"name": "muon"}}, 1),
        ({"batch_size": 4, "optimizer": {"turns": 3}}, 3),
    ],
)
def test_layers_take_more_turns_the_smaller_the_batch(change, wanted):
    config = default.get_config()
    config.update(change)
    said = choose_turns(config)
    assert config.optimizer.turns == wanted
    assert said.startswith(f"optimizer.turns={wanted}, ") or not said and "optimizer" in change


def test_the_products_of_normuon_are_those_of_its_program():
    config = default.get_config()
    matrices = skeleton(model_of(config))[1].filter(lambda path, variable: matrix_axes(variable) is not None)
    transform = scale_by_normuon(0.95, jnp.float32)
    program = jax.make_jaxpr(lambda grads: transform.update(grads, transform.init(grads))[0])(matrices).jaxpr
    # The program counts symmetric products whole: 4·m²n + 2·m³ for 3·m²n + m³.
    assert 4 / 3 < product_flops(program) / products(config) < 3 / 2


def test_a_run_keeps_its_slices_and_turns(tmp_path):
    before = default.get_config()
    before.accumulate, before.optimizer.turns = 16, 3
    (tmp_path / "config.json").write_text(json.dumps(before.to_dict()))
    keep_chosen(config := default.get_config(), tmp_path)
    assert (config.accumulate, config.optimizer.turns) == (16, 3)
