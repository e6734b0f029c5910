"""What --describe says of the training step, against XLA's count of the compiled one and sums by hand."""

import itertools
import json
import os

import jax
import pytest

from lm.errors import UserError
from lm.model import execution, sizing
from lm.train import describe
from lm.train.plan.compiled import compile_step
from lm.train.step import model_config_of
from tests.lm.examples import tiny_config
from tests.slow import all_but

# Of a size at which products outweigh what is elementwise, which XLA counts and we do not.
SIZES = dict(
    vocab_size=1024, num_layers=2, embed_dim=512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_dim=1024, scan_layers=False
)
MLA = dict(num_kv_heads=8, mla=dict(kv_rank=128, query_rank=192, rope_head_dim=32, value_head_dim=64))
MOE = dict(moe=dict(num_experts=8, top_k=2, expert_dim=512, shared_dim=256, capacity_factor=1.25))
OFTEN = [("local and global", "matmuls")]
MODELS = {
    "dense": {},
    "local and global": dict(
        attention_pattern=("local", "global"),
        window=128,
        qk_norm="head",
        norm_position="sandwich",
        norm_plus_one=True,
        activation="gelu_tanh",
        tie_embeddings=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "latent": MLA | dict(num_layers=1, mtp_depth=1),
    "mixture": MOE | dict(num_layers=1, mlp_pattern=("moe",)),
}


def training(sequence_length=256, dtype="float32", **model):
    config = tiny_config(**SIZES | model)
    config.batch_size, config.sequence_length, config.dtype = 8, sequence_length, dtype
    config.mesh.update(data=1)
    return config


def under(config, measure):
    """measure(config, mesh) on the mesh of the config."""
    mesh = describe.abstract_mesh(config.mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        return measure(config, mesh)


KNOWN = {}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """XLA does not count what compiled functions multiply (lm/kernels/dense), so FLOPs are compared without them."""
    monkeypatch.setenv("LMCRAFT_KERNELS", "product=xla,attention=blocks")


def step_flops(config) -> int:
    if (key := (config.to_json(), os.environ.get("LMCRAFT_KERNELS"))) not in KNOWN:
        KNOWN[key] = under(config, describe.step_flops)
    return KNOWN[key]


@pytest.mark.slow
@pytest.mark.parametrize("model, remat", all_but(OFTEN, itertools.product(MODELS, ("matmuls", "full"))))
def test_flops_and_state_are_what_xla_counts_in_the_compiled_step(model, remat):
    config = training(**MODELS[model], remat=remat)
    config.guard.on = False  # a kilobyte, whatever the model
    config.batch_size = 2  # one chunk of the vocabulary: XLA counts the body of a loop once
    compiled = compile_step(config, jax.devices()[:1]).compiled
    assert step_flops(config) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)
    memory = under(config, describe.memories)[0]
    arguments = compiled.memory_analysis().argument_size_in_bytes - 5 * 4 * 2 * 256  # without the batch
    assert memory["parameters"] + memory["optimizer"] == pytest.approx(arguments, abs=64)  # a few counters


@pytest.mark.parametrize("model", all_but(["local and global"], MODELS))
def test_flops_of_compiled_functions_are_those_of_plain_ones(model, monkeypatch):
    """Attention differs a little, since its blocks have other sizes where it is a compiled function."""
    plain = step_flops(training(**MODELS[model]))
    monkeypatch.delenv("LMCRAFT_KERNELS")
    assert step_flops(training(**MODELS[model])) == pytest.approx(plain, rel=0.03)
    assert step_flops(training(dtype="bfloat16", **MODELS[model])) == pytest.approx(plain, rel=0.03)


@pytest.mark.parametrize("model", ["dense", "latent"])
def test_without_recomputation_the_step_multiplies_what_the_model_asks_for(model):
    """And for attention, which works in blocks of at least 128 queries, whole blocks, and the scores twice."""
    config = training(sequence_length=128, **MODELS[model], remat="none")
    model_config = model_config_of(config)
    costs = sizing.flops(model_config, 128)
    products = costs.pop("attention_products")
    K, V, layers = model_config.key_head_dim, model_config.value_head_dim, model_config.num_layers + model_config.mtp_depth
    whole = layers * 2 * model_config.num_heads * 128 * (4 * K + 3 * V)
    assert whole == 128 / 64 * products.forward * (4 * K + 3 * V) / (K + V)
    assert step_flops(config) == 8 * 128 * (sum(map(sum, costs.values())) + whole)


@pytest.mark.slow
def test_flops_do_not_depend_on_how_the_step_is_laid_out():
    def flops(mesh=None, accumulate=1, **model):
        config = training(**MODELS["mixture"] | model)
        config.mesh.update(mesh or {})
        config.accumulate = accumulate
        return step_flops(config)

    plain = flops()
    assert plain == flops(scan_layers=True, accumulate=2) == flops(mesh=dict(fsdp=2, tensor=2))


def test_stages_compute_in_the_bubble_too():
    def flops(layers, **mesh):
        config = training(num_layers=layers, scan_layers=True)
        config.mesh.update(mesh)
        return step_flops(config)

    plain, deeper = flops(4), flops(8)
    assert flops(4, stage=2) - plain == (deeper - plain) / 8  # one tick beside those of the 8 microbatches


def test_experts_without_capacity_multiply_what_tokens_choose():
    def flops(capacity_factor, **mesh):
        moe = MODELS["mixture"]["moe"] | dict(capacity_factor=capacity_factor)
        config = training(**MODELS["mixture"] | dict(moe=moe))
        config.mesh.update(mesh)
        return step_flops(config)

    even = flops(1.0)
    assert even == flops(0.0, fsdp=2, tensor=2, expert=2)
    costs = sizing.flops(model_config_of(training(**MODELS["mixture"])), 256)
    more = flops(1.25) - even
    # forward, both gradients, and nothing of it again: what the backward pass needs of the experts is kept
    assert more == 0.25 * 8 * 256 * sum(costs["experts"])


def activations(config) -> int:
    return under(config, describe.memories)[0]["activations"]


def test_activations_a_layer_by_hand(monkeypatch):
    """Full: a layer's input. Attention: also queries, keys, values, attention's result and log Z, and the sum after it.
    Matmuls: also gate and up."""

    monkeypatch.setattr(execution, "FEW", 0)  # layers that are unrolled also keep a copy of their weights

    def a_layer(remat, **mesh):
        by_depth = []
        for layers in (2, 6):
            config = training(num_layers=layers, dtype="bfloat16", remat=remat, scan_layers=True)
            config.mesh.update(mesh)
            by_depth.append(activations(config))
        return (by_depth[1] - by_depth[0]) / 4

    tokens, x, heads, hidden = 8 * 256, 512 * 2, (8 + 4 + 4 + 8) * 64 * 2 + 8 * 4, 2 * 1024 * 2
    assert a_layer("full") == tokens * x
    assert a_layer("attention") == tokens * (2 * x + heads)
    matmuls = a_layer("matmuls")
    assert matmuls == tokens * (2 * x + heads + hidden)
    assert a_layer("matmuls", fsdp=4, tensor=2) == tokens / 8 * (2 * x + heads + hidden)
    assert a_layer("full", stage=2) == 9 / 8 * tokens * x / 2  # of 9 ticks, in one half of the layers
    assert a_layer("none") > matmuls


def test_memory_by_hand():
    def memory(accumulate=1, **mesh):
        config = training()
        config.mesh.update(mesh)
        config.accumulate = accumulate
        return under(config, describe.memories)[0]

    counts = sizing.parameters(model_config_of(training()))["total"]
    norms, matrices = counts.pop("norms"), sum(counts.values())
    one, split, sliced = memory(), memory(fsdp=4, tensor=2), memory(accumulate=2)
    assert one["parameters"] == one["gradients"] == 4 * (norms + matrices)
    assert split["parameters"] == 4 * (norms + matrices / 8)  # norms are whole on every device
    assert one["optimizer"] == pytest.approx(2 * one["parameters"], abs=64)
    assert split["optimizer"] == pytest.approx(2 * split["parameters"], abs=64)
    assert sliced["gradients"] == 2 * one["gradients"]
    assert sliced["activations"] < 0.7 * one["activations"]


def test_a_mesh_that_is_not_here():
    assert dict(describe.abstract_mesh(dict(data=1, fsdp=128, tensor=4, expert=1)).shape)["fsdp"] == 128
    filled = describe.abstract_mesh(dict(data=1, fsdp=-1, tensor=2, expert=1))
    assert filled.size == jax.device_count()  # as train.py would fill it
    for sizes in (dict(data=-1, fsdp=-1), dict(fsdp=0), dict(sequence=2)):
        with pytest.raises(UserError, match="mesh"):
            describe.abstract_mesh(dict(data=1, fsdp=1, tensor=1, expert=1) | sizes)


def test_what_a_processor_would_choose_has_no_part_in_a_mesh_that_is_not_here(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    for devices, dtype, slices in ((1, "float32", 8), (64, "bfloat16", 1)):
        config = training(dtype="auto")
        config.batch_size, config.accumulate = 64, 0
        config.mesh.update(fsdp=devices)
        describe.choose_elsewhere(config)
        said = describe.describe(config)
        assert dtype in said["cache_per_token"] and said["step"]["accumulate"] == slices


def test_the_table_shows_what_json_holds():
    config = training(**MODELS["mixture"] | dict(mtp_depth=1), remat="matmuls")
    said = describe.describe(config)
    table = describe.table(said)
    assert json.loads(json.dumps(said)) == said
    total = sum(part["total"] for part in said["parameters"]["parts"].values())
    assert said["parameters"]["total"] == total and f"{total:,}" in table
    assert said["parameters"]["without_mtp"] == total - said["parameters"]["parts"]["mtp"]["total"]
    assert said["run"]["chinchilla_tokens"] == 20 * said["parameters"]["active_without_mtp"]
    assert said["run"]["tokens"] == config.steps * config.batch_size * config.sequence_length
    assert said["step"]["hardware_flops"] > said["step"]["model_flops"]
    parts = said["flops_per_token"]["parts"].values()
    assert said["flops_per_token"]["total"] == sum(part["forward"] + part["backward"] for part in parts)
    for word in ("router", "shared expert", "attention products", "remat=matmuls", "Chinchilla", "int8"):
        assert word in table
