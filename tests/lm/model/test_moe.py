"""Mixture of experts: the loop over experts, the routers of published families, capacity, padding, balance, and any mesh."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from lm.config import ModelConfig
from lm.kernels.ops import experts
from lm.kernels.reference import experts as experts_reference
from lm.model.moe import Balance, MoE, RouterStats, balanced, route, router_logits, router_stats
from lm.parallel.context import axis_between_blocks
from lm.parallel.mesh import make_mesh, shardings, spec
from tests.lm.kernels.draws import normal, uniform
from tests.slow import all_but

B, T, D, E, F = 4, 12, 16, 8, 12
SIGMOID_GROUPS = {"scores": "sigmoid", "balance_bias": True, "num_groups": 4, "top_groups": 2, "group_score": "top2"}


def config_of(**moe):
    sizes = {"vocab_size": 32, "num_layers": 1, "embed_dim": D, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": F}
    return ModelConfig(**sizes, dtype="float32", mlp_pattern=("moe",), moe={"num_experts": E, "expert_dim": F, **moe})


def layer_of(config, seed=0):
    """(graph, state) of a layer whose router decides and whose experts differ."""
    with nnx.use_eager_sharding(False):
        graph, state = nnx.split(MoE(config, nnx.Rngs(seed)))
    state = jax.tree.map(lambda p: p * 15, state)
    if config.moe.balance_bias:
        state["balance_bias"] = state["balance_bias"].replace(0.1 * normal(9, (E,)))
    return graph, state


def activations(shape=(B, T, D), seed=1):
    return normal(seed, shape)


def quick(f, *arrays):
    return jax.jit(f)(*arrays)


def weights_of(gated=True, num_experts=E):
    names = {"gate": (num_experts, D, F), "up": (num_experts, D, F), "down": (num_experts, F, D)}
    return {name: normal(10 + n, shape) for n, (name, shape) in enumerate(names.items()) if gated or name != "gate"}


def assignments(K=2):
    """Different experts for each token, unevenly; the last tokens of a row go to none."""
    scores_BTE = np.random.default_rng(4).normal(size=(B, T, E)) + 2 * np.arange(E) / E
    choice_BTK = np.argsort(-scores_BTE, axis=-1)[..., :K]
    return jnp.asarray(np.where(np.arange(T)[:, None] < T - 2, choice_BTK, E), jnp.int32), uniform(5, (B, T, K))


# The experts


@pytest.mark.parametrize(("gated", "K"), all_but([(True, 2), (False, 3)], [(True, 2), (False, 3), (True, 8)]))
def test_dropless_is_the_loop_over_experts(gated, K):
    choice, weight = assignments(K)
    x, r, weights = activations(), activations(seed=2), weights_of(gated)

    def gradients(f):
        def loss(x, weight, weights):
            y = f(x, choice, weight, weights)
            return jnp.sum(y * r), y

        return quick(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), x, weight, weights)

    ours = gradients(lambda *a: experts(*a, activation=jax.nn.silu, dtype="float32"))
    twin = gradients(lambda *a: experts_reference(*a, activation=jax.nn.silu))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(twin), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_bfloat16_stays_near():
    choice, weight = assignments()
    x, weights = activations(), weights_of()
    y = quick(lambda *a: experts(*a, activation=jax.nn.silu, dtype="bfloat16"), x.astype(jnp.bfloat16), choice, weight, weights)
    twin = quick(lambda *a: experts_reference(*a, activation=jax.nn.silu), x, choice, weight, weights)
    assert y.dtype == jnp.bfloat16
    assert jnp.linalg.norm(y.astype(jnp.float32) - twin) < 0.02 * jnp.linalg.norm(twin)


def test_a_capacity_that_suffices_drops_nothing():
    choice, weight = assignments()
    x, r, weights = activations(), activations(seed=2), weights_of()

    def gradients(factor):
        def loss(x, weight, weights):
            y = experts(x, choice, weight, weights, activation=jax.nn.silu, dtype="float32", capacity_factor=factor)
            return jnp.sum(y * r), y

        return quick(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), x, weight, weights)

    for a, b in zip(jax.tree.leaves(gradients(float(E))), jax.tree.leaves(gradients(0.0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_a_full_expert_drops_the_latest_tokens():
    # 2 rows of 4 tokens, 2 experts, one each: 0.5 · 8 / 2 = 2 places an expert. Number 2 is no expert and takes no place.
    choice_BTK = jnp.asarray([[0, 2, 0, 1], [0, 1, 1, 0]])[..., None]
    kept_BT = jnp.asarray([[1, 0, 1, 1], [0, 1, 0, 0]])
    x, weights = activations((2, 4, D)), weights_of(num_experts=2)
    weight_BTK = jnp.ones((2, 4, 1))
    ours = quick(
        lambda *a: experts(*a, activation=jax.nn.silu, dtype="float32", capacity_factor=0.5), x, choice_BTK, weight_BTK, weights
    )
    given = x, choice_BTK, weight_BTK * kept_BT[..., None], weights
    twin = quick(lambda *a: experts_reference(*a, activation=jax.nn.silu), *given)
    np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-3)


# The router, against those of transformers


QWEN3 = {"moe_intermediate_size": F, "num_experts": E, "num_experts_per_tok": 3}
DEEPSEEK = {"moe_intermediate_size": F, "n_routed_experts": E, "num_experts_per_tok": 3, "n_shared_experts": 2}
DEEPSEEK |= {"routed_scaling_factor": 2.5, "num_attention_heads": 2, "num_key_value_heads": 2}
GROUPS = {"n_group": 4, "topk_group": 2}
V2 = {"top_k": 3, "normalize": False, "weight_scale": 2.5, "shared_dim": 2 * F}
FAMILIES = {  # their block, their config, ours
    "mixtral": ("MixtralSparseMoeBlock", {"intermediate_size": F, "num_local_experts": E}, {"top_k": 2}),
    "qwen3_moe": ("Qwen3MoeSparseMoeBlock", QWEN3 | {"norm_topk_prob": True}, {"top_k": 3}),
    "qwen3_moe, as it is": ("Qwen3MoeSparseMoeBlock", QWEN3 | {"norm_topk_prob": False}, {"top_k": 3, "normalize": False}),
    "deepseek_v2, greedy": ("DeepseekV2Moe", DEEPSEEK | {"topk_method": "greedy"}, V2),
    "deepseek_v2, groups": (
        "DeepseekV2Moe",
        DEEPSEEK | GROUPS | {"topk_method": "group_limited_greedy"},
        V2 | {"num_groups": 4, "top_groups": 2},
    ),
    "deepseek_v3": ("DeepseekV3MoE", DEEPSEEK | GROUPS, V2 | SIGMOID_GROUPS | {"normalize": True}),
}


@pytest.mark.parametrize("name", all_but(["qwen3_moe", "deepseek_v2, groups", "deepseek_v3"], FAMILIES))
def test_as_in_transformers(name):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    cls, sizes, moe = FAMILIES[name]
    family = name.split(",")[0]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    torch.manual_seed(0)
    block = getattr(module, cls)(hf.AutoConfig.for_model(family, hidden_size=D, **sizes)).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.4)
        if moe.get("balance_bias"):  # so low that an excluded expert would win were it not at −∞
            block.gate.e_score_correction_bias.normal_(mean=-2.0)
        x = torch.randn(B, T, D)
        theirs = block(x).numpy()
        chosen = block.gate(x)[2].numpy()

    def array(tensor):
        return jnp.asarray(tensor.detach().numpy())

    graph, state = layer_of(config_of(**moe))
    gate, up = jnp.split(array(block.experts.gate_up_proj).transpose(0, 2, 1), 2, axis=-1)
    ours = {("router",): array(block.gate.weight).T, ("gate",): gate, ("up",): up}
    ours["down",] = array(block.experts.down_proj).transpose(0, 2, 1)
    if moe.get("balance_bias"):
        ours["balance_bias",] = array(block.gate.e_score_correction_bias)
    if moe.get("shared_dim"):
        for part in ("gate", "up", "down"):
            ours["shared", part, "weight"] = array(getattr(block.shared_experts, f"{part}_proj").weight).T
    flat = dict(nnx.to_flat_state(state))
    assert flat.keys() == ours.keys()
    assert {path: value.shape for path, value in flat.items()} == {path: value.shape for path, value in ours.items()}
    state = nnx.from_flat_state({path: flat[path].replace(value) for path, value in ours.items()})

    def run(state, x):
        layer = nnx.merge(graph, state)
        bias = layer.balance_bias[...] if moe.get("balance_bias") else None
        choice = route(router_logits(x, layer.router[...], layer.config), bias, layer.config.moe)[1]
        return layer(x, jnp.ones((B, T), bool)), choice

    (y, stats), choice = quick(run, state, jnp.asarray(x.numpy()))
    np.testing.assert_array_equal(np.sort(choice.reshape(B * T, -1)), np.sort(chosen))
    np.testing.assert_allclose(y, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stats.load_E, np.bincount(chosen.ravel(), minlength=E))


# What it says about itself


def test_statistics_are_those_of_their_definition_and_leave_padding_out():
    config = config_of(top_k=2, scores="sigmoid")
    graph, state = layer_of(config)
    x, valid_BT = activations(), jnp.arange(T) < jnp.asarray([T, 5, 1, 0])[:, None]
    y, stats = quick(lambda s, x, v: nnx.merge(graph, s)(x, v), state, x, valid_BT)
    balance, z, load_E = 0.0, 0.0, np.zeros(E)
    logits_BTE = np.asarray(x @ state["router"].get_value(), np.float64)
    for row in range(B):
        logits = logits_BTE[row][np.asarray(valid_BT[row])]
        if len(logits) == 0:
            continue
        scores = 1 / (1 + np.exp(-logits))
        count = np.bincount(np.argsort(-scores, axis=-1)[:, :2].ravel(), minlength=E)
        f, P = E / (2 * len(scores)) * count, np.mean(scores / scores.sum(-1, keepdims=True), axis=0)
        balance += len(scores) * np.sum(f * P)
        z += np.sum(np.log(np.exp(logits).sum(-1)) ** 2)
        load_E += count
    np.testing.assert_allclose(stats.balance, balance, rtol=1e-5)
    np.testing.assert_allclose(stats.z, z, rtol=1e-5)
    np.testing.assert_array_equal(stats.load_E, load_E)
    np.testing.assert_array_equal(np.asarray(y)[~np.asarray(valid_BT)], 0)  # padding goes to no expert

    half = jax.jit(lambda s, x, v: nnx.merge(graph, s)(x, v)[1])
    halves = [half(state, x[i : i + 2], valid_BT[i : i + 2]) for i in (0, 2)]
    for whole, *parts in zip(stats, *halves, strict=True):
        np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


def test_even_routing_has_a_balance_loss_of_one_a_token():
    choice_BTK = jnp.stack([(jnp.arange(B * E) + k) % E for k in range(2)], axis=-1).reshape(B, E, 2)
    stats = quick(router_stats, jnp.zeros((B, E, E)), jnp.full((B, E, E), 1 / E), choice_BTK, jnp.ones((B, E), bool))
    np.testing.assert_allclose(stats.balance, B * E, rtol=1e-6)
    np.testing.assert_allclose(stats.z, B * E * np.log(E) ** 2, rtol=1e-5)
    np.testing.assert_array_equal(stats.load_E, np.full(E, 2 * B))


def test_the_router_learns_from_outputs_and_losses_and_the_bias_from_neither():
    graph, state = layer_of(config_of(top_k=2, shared_dim=4, **SIGMOID_GROUPS))
    valid_BT = jnp.ones((B, T), bool)

    def run(state, weights):
        y, stats = nnx.merge(graph, state)(activations(), valid_BT)
        return weights[0] * jnp.sum(jnp.sin(y)) + weights[1] * stats.balance + weights[2] * stats.z

    learnt = jax.jit(jax.grad(run))
    for weights in np.eye(3):
        grads = learnt(state, weights)
        assert jnp.any(grads["router"].get_value() != 0)
        assert jnp.all(grads["balance_bias"].get_value() == 0)
        assert jnp.any(grads["up"].get_value() != 0) == (weights[0] == 1)
    assert isinstance(state["balance_bias"], Balance) and not isinstance(state["balance_bias"], nnx.Param)


def test_the_bias_moves_against_the_load():
    moved = balanced(jnp.asarray([[0.5, 0.0, -0.25], [0.0, 0.0, 0.0]]), jnp.asarray([[9.0, 2.0, 7.0], [4.0, 4.0, 4.0]]), 0.125)
    np.testing.assert_array_equal(moved, [[0.375, 0.125, -0.375], [0.0, 0.0, 0.0]])
    assert balanced(jnp.zeros(2), jnp.asarray([0.1 + 1e-7, 0.1]), 0.125).tolist() == [0.0, 0.0]  # rounding is no load
    # An expert that is moved up enough is chosen, by no more weight than it had.
    moe = config_of(top_k=1, scores="sigmoid", normalize=False, balance_bias=True).moe
    logits = jnp.asarray([[[2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]]])
    assert route(logits, jnp.zeros(E), moe)[1].item() == 0
    _, choice, weight = route(logits, jnp.zeros(E).at[3].set(1.0), moe)
    assert choice.item() == 3
    np.testing.assert_allclose(weight.item(), 1 / (1 + np.e), rtol=1e-6)


def test_mup_scales_the_logits_of_the_router_with_the_width():
    config = config_of()
    wide = ModelConfig(**{**config.to_dict(), "mup_base_dim": D // 4})
    x, router = activations(), normal(0, (D, E))
    np.testing.assert_allclose(router_logits(x, router, wide), router_logits(x, router, config) / 4, rtol=1e-5, atol=1e-6)


# On meshes


def outputs_and_gradients(config, sizes, batch=8):
    """((loss, (y, stats)), gradients of parameters and input); sizes None: without a mesh."""
    graph, state = layer_of(config)
    x, r = activations((batch, T, D)), activations((batch, T, D), seed=2)
    valid_BT = jnp.arange(T) < (3 * jnp.arange(1, batch + 1))[:, None]

    def loss(state, x, r, valid_BT):
        y, stats = nnx.merge(graph, state)(x, valid_BT)
        return jnp.sum(y * r) + 0.3 * stats.balance + 0.1 * stats.z, (y, stats)

    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    if sizes is None:
        return quick(both, state, x, r, valid_BT)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        axes = axis_between_blocks(T), axis_between_blocks(T), "length"
        placed = [jax.device_put(a, NamedSharding(mesh, spec("batch", axis))) for a, axis in zip((x, r, valid_BT), axes)]
        return quick(both, jax.device_put(state, shardings(state, mesh)), *placed)


LAYERS = {"dropless": {"top_k": 2, "shared_dim": 4, **SIGMOID_GROUPS}, "capacity": {"top_k": 3, "capacity_factor": float(E)}}


@pytest.fixture(scope="module")
def without_mesh():
    return {name: outputs_and_gradients(config_of(**moe), None) for name, moe in LAYERS.items()}


SPREAD = [
    ("dropless", {"data": 2, "expert": 4}),
    ("dropless", {"expert": 2, "fsdp": 2, "tensor": 2}),
    ("dropless", {"expert": 8}),
    ("capacity", {"expert": 2, "fsdp": 2, "tensor": 2}),
]


@pytest.mark.parametrize(("name", "sizes"), all_but([SPREAD[3]], SPREAD))
def test_eight_devices_give_what_one_gives(without_mesh, name, sizes):
    ours = outputs_and_gradients(config_of(**LAYERS[name]), sizes)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(without_mesh[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_each_device_has_its_own_places():
    config = config_of(top_k=2, capacity_factor=0.7)
    (_, (y, stats)), _ = outputs_and_gradients(config, {"data": 2, "expert": 4})
    graph, state = layer_of(config)
    x, valid_BT = activations((8, T, D)), jnp.arange(T) < (3 * jnp.arange(1, 9))[:, None]
    layer = jax.jit(lambda s, x, v: nnx.merge(graph, s)(x, v))
    rows = [layer(state, x[i : i + 1], valid_BT[i : i + 1]) for i in range(8)]
    np.testing.assert_allclose(y, np.concatenate([y for y, _ in rows]), rtol=1e-5, atol=1e-5)
    for a, b in zip(stats, jax.tree.map(lambda *parts: sum(parts), *[s for _, s in rows]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert isinstance(stats, RouterStats)
