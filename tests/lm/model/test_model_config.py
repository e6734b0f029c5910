"""Each choice of the model config: the cache gives what one pass gives, windows and look-ahead reach as far as they say."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

import lm
from lm.config import ModelConfig
from lm.errors import UserError
from lm.kernels import reference
from lm.model import sizing
from lm.model.cache import empty_state, fork
from lm.model.feed_forward import FeedForward, largest
from lm.model.inputs import Inputs, inputs_of, steps_of
from lm.model.positions import rotate
from lm.model.transformer import skeleton
from lm.parallel.context import slots
from lm.parallel.mesh import check_fit, make_mesh, shardings, spec
from lm.train.step import training_loss
from tests.lm.examples import packed_batch, parameters, tiny_config
from tests.slow import all_but

SIZES = dict(vocab_size=50, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32")
LATENT = dict(
    num_kv_heads=4,
    mla=dict(kv_rank=12, query_rank=8, rope_head_dim=4, value_head_dim=6),
    rope=dict(interleaved=True, scaling="yarn", factor=4.0, original_positions=8, mscale=1.0, mscale_all_dim=0.7),
)
OFTEN = ("gemma", "latent, experts", "shared keys")
KINDS = {
    "llama": {},
    "gemma": dict(
        num_layers=5,
        attention_pattern=("local", "global"),
        window=5,
        norm_position="sandwich",
        norm_plus_one=True,
        qk_norm="head",
        embed_scale=32**0.5,
        local_rope_theta=100.0,
        attention_softcap=5.0,
        logit_softcap=3.0,
        tie_embeddings=True,
        activation="gelu_tanh",
    ),
    "gpt2": dict(
        num_kv_heads=4,
        positions="learned",
        norm="layer",
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        activation="gelu_tanh",
        tie_embeddings=True,
        max_positions=64,
    ),
    "olmo2": dict(norm_position="post", qk_norm="full"),
    "one key head, sinks": dict(num_kv_heads=1, attention_sinks=True, attention_pattern=("local", "global"), window=4),
    "chunks": dict(
        num_layers=3,
        attention_pattern=("chunk", "chunk", "global"),
        window=5,
        rotary_pattern=("rotary", "rotary", "none"),
        qk_norm="unit",
        qk_norm_last=True,
        attention_temperature=0.3,
        temperature_length=4,
        temperature_nope=True,
        mlp_pattern=("moe",),
        moe=dict(num_experts=4, top_k=1, shared_dim=12, scores="sigmoid", normalize=False, weigh_inputs=True),
    ),
    "no positions, relu2": dict(positions="none", activation="relu2", gated=False),
    "parallel, scaled": dict(
        attention_pattern=("local", "global"),
        window=5,
        rotary_pattern=("rotary", "none"),
        attention_temperature=0.3,
        temperature_length=4,
        norm="layer",
        norm_bias=False,
        norm_position="parallel",
        residual_scale=0.7,
        logit_scale=2.0,
        qk_norm="head",
        qk_norm_last=True,
        gate_limit=0.5,
        mlp_pattern=("dense", "moe"),
        moe=dict(num_experts=4, expert_dim=16, biases=True),
    ),
    "shared keys": dict(
        num_layers=6,
        attention_pattern=("local", "global"),
        window=5,
        qk_norm="head",
        value_norm=True,
        attention_sinks=True,
        shared_kv_layers=3,
        mlp_dims=(48, 48, 32),
        gate_sparsity=(0.5, 0.0),
    ),
    "streams": dict(altup_streams=3, laurel_rank=4, norm_position="sandwich"),
    "embeddings of layers": dict(num_layers=5, layer_embed_dim=8, layer_embed_vocab=40, norm="layer"),
    "sublayers apart": dict(
        num_layers=5, attention_pattern=("global", "none"), mlp_pattern=("none", "moe"), moe=dict(num_experts=4, expert_dim=16)
    ),
    "values of tokens": dict(num_layers=3, value_embeddings=2, qk_norm="head"),
    "latent": LATENT,
    "latent, experts": dict(
        **LATENT,
        num_layers=3,
        mlp_pattern=("dense", "moe", "moe"),
        moe=dict(
            num_experts=8,
            expert_dim=16,
            shared_dim=16,
            num_groups=4,
            top_groups=2,
            scores="sigmoid",
            group_score="top2",
            balance_bias=True,
        ),
    ),
}


@functools.cache
def model_of(config):
    """The compiled forward, of matrices so large that every part of it shows in the logits."""
    graph = skeleton(config)[0]
    forward = jax.jit(lambda params, *args: nnx.merge(graph, params)(Inputs(*args[:3]), *args[3:]))
    return functools.partial(forward, parameters(config, scale=4.0))


def tokens_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], shape)


def decoded(model, config, rows, lengths, width, steps, prefill=True):
    """Logits [B, 1 + steps, V] from the last prompt token on: prompts with padding on the left, then token by token.

    prefill: whether prompts are read as into an empty state.
    """
    tokens, segments, positions = np.zeros((3, len(lengths), width), np.int32)
    for row, n in enumerate(lengths):
        tokens[row, width - n :], segments[row, width - n :] = rows[row, :n], 1
        positions[row, width - n :] = np.arange(n)
    empty = functools.partial(empty_state, config, len(lengths), width + steps + 3)
    if prefill:
        graph = skeleton(config)[0]
        read = jax.jit(lambda params, *args: nnx.merge(graph, params)(Inputs(*args), empty(), prefill=True))
        logits, state = read(*model.args, tokens, segments, positions)
    else:
        logits, state = model(tokens, segments, positions, empty())
    seen = [logits[:, -1]]
    for i in range(steps):
        at = np.asarray([[n + i] for n in lengths], np.int32)
        logits, state = model(np.take_along_axis(rows, at, axis=1), np.ones((len(lengths), 1), np.int32), at, state)
        seen.append(logits[:, 0])
    return np.stack(seen, axis=1)


@pytest.mark.parametrize("kind", all_but(OFTEN, KINDS))
def test_cached_decoding_is_the_whole_forward(kind):
    """Rows with left padding are read into the cache, then token by token: the logits are those of one pass (law 8)."""
    config = ModelConfig(**SIZES | KINDS[kind])
    model, rows, lengths, steps = model_of(config), tokens_of(6, 4, 24), (14, 3, 9, 1), 6
    whole = np.asarray(model(rows))
    assert np.abs(whole).max() > 0.5
    ours = decoded(model, config, rows, lengths, 14, steps)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(ours[row], whole[row, n - 1 : n + steps], atol=1e-4)


@pytest.mark.parametrize("kind", all_but(["gemma", "latent, experts", "shared keys"], KINDS))
def test_rows_go_on_from_what_they_share(kind):
    """One beginning, two prompts behind it, two rows behind each of these, token by token; with padding between beginning and
    prompts but for windows, which reach over slots."""
    config = ModelConfig(**SIZES | KINDS[kind])
    rows, begin, width, steps = tokens_of(8, 4, 24), 6, 5, 2
    lengths = (5, 5) if config.window and not config.chunked else (5, 2)
    rows[:, :begin] = rows[0, :begin]
    rows[1, : begin + lengths[0]], rows[3, : begin + lengths[1]] = rows[0, : begin + lengths[0]], rows[2, : begin + lengths[1]]
    tokens, segments, positions = np.zeros((3, 2, width), np.int32)
    for p, n in enumerate(lengths):
        tokens[p, width - n :], segments[p, width - n :] = rows[2 * p, begin : begin + n], 1
        positions[p, width - n :] = begin + np.arange(n)
    starts = begin + np.repeat(lengths, 2)
    graph = skeleton(config)[0]

    def staged(params):
        model = nnx.merge(graph, params)
        _, state = model(Inputs(rows[:1, :begin], None, np.arange(begin)[None]), empty_state(config, 1, begin), prefill=True)
        _, state = model(Inputs(tokens, segments, positions), fork(state, config, 2, width))
        state, seen = fork(state, config, 2, steps + 2), []
        for i in range(steps):
            at = (starts + i)[:, None]
            logits, state = model(Inputs(np.take_along_axis(rows, at, axis=1), np.ones((4, 1), np.int32), at), state)
            seen.append(logits[:, 0])
        return jnp.stack(seen, axis=1)

    model = model_of(config)
    whole, found = np.asarray(model(rows)), jax.jit(staged)(*model.args)
    for row, start in enumerate(starts):
        np.testing.assert_allclose(found[row], whole[row, start : start + steps], atol=1e-4)


@pytest.mark.parametrize("kind", all_but(["llama"], ["llama", "latent"]))
def test_a_state_need_not_be_known_to_be_empty(kind):
    config = ModelConfig(**SIZES | KINDS[kind])
    model, rows = model_of(config), tokens_of(6, 2, 24)
    known, unknown = (decoded(model, config, rows, (14, 3), 14, 2, prefill=known) for known in (True, False))
    np.testing.assert_allclose(known, unknown, atol=1e-4)


def test_a_local_layer_sees_its_window():
    config = ModelConfig(**SIZES | dict(num_layers=1, attention_pattern=("local",), window=5))
    tokens = tokens_of(8, 1, 24)
    changed = tokens.copy()
    changed[0, 10] = (changed[0, 10] + 7) % 50
    model = model_of(config)
    differs = np.abs(np.asarray(model(tokens)) - np.asarray(model(changed)))[0].max(axis=-1) > 0
    assert np.flatnonzero(differs).tolist() == [10, 11, 12, 13, 14]  # the token, and four after it


@pytest.mark.parametrize("context", [24, 4])
def test_a_chunk_layer_sees_its_chunk_of_each_document(context):
    """Also where documents are longer than the context."""
    config = ModelConfig(**SIZES | dict(num_layers=1, attention_pattern=("chunk",), window=5, max_positions=context))
    segments, positions = np.repeat([[1, 2, 0]], (7, 12, 5), axis=1), np.concatenate([np.arange(7), np.arange(12), np.zeros(5)])
    tokens, model = tokens_of(8, 1, 24), model_of(config)
    changed = tokens.copy()
    changed[0, (4, 6, 13)] = (changed[0, (4, 6, 13)] + 7) % 50  # places 4 and 6 of the first document, 6 of the second
    both = [np.asarray(model(x, segments, positions.astype(np.int32)[None]))[0] for x in (tokens, changed)]
    differs = np.abs(both[0] - both[1]).max(axis=-1) > 0
    assert np.flatnonzero(differs).tolist() == [4, 6, 13, 14, 15, 16]  # two ends; the second of a chunk, and what follows it


def test_a_sublayer_may_be_a_layer_of_its_own():
    """Attention alone and then a feed-forward alone are a layer with both: in one pass, in the engine, in size."""
    both = ModelConfig(**SIZES | {"num_layers": 2})
    apart = dataclasses.replace(both, num_layers=4, attention_pattern=("global", "none"), mlp_pattern=("none", "dense"))
    arrays = {path: x.get_value() for path, x in nnx.to_flat_state(parameters(both, scale=4.0))}
    graph, abstract = skeleton(apart)
    named = [(path, x, (*path[:2], 0, *path[3:]) if path[0] == "stacks" else path) for path, x in nnx.to_flat_state(abstract)]
    assert {path for _, _, path in named} == arrays.keys()
    params = nnx.from_flat_state([(path, x.replace(arrays[old])) for path, x, old in named])
    models = nnx.merge(skeleton(both)[0], parameters(both, scale=4.0)), nnx.merge(graph, params)
    rows, prompts, tokenizer = tokens_of(6, 2, 24), tokens_of(7, 1, 40).tolist() * 2, stand_in(SIZES["vocab_size"])
    whole, split = (np.asarray(jax.jit(model)(rows)) for model in models)
    np.testing.assert_allclose(split, whole, atol=1e-5)
    drawn = [lm.generate(model, tokenizer, prompts, max_new_tokens=8, temperature=0) for model in models]
    assert drawn[0] == drawn[1] and len(set(drawn[0][0])) > 2
    assert sizing.parameters(both) == sizing.parameters(apart) and sizing.flops(both, 64) == sizing.flops(apart, 64)
    assert sizing.cache_bytes_per_token(both) == sizing.cache_bytes_per_token(apart)


def stand_in(vocab_size):
    """A tokenizer for prompts of ids, in which no token is the end."""
    return types.SimpleNamespace(stop_ids=(), eos_id=-1, vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(attention_pattern=("none", "global"), mlp_pattern=("none", "dense")), "mlp_pattern=.* leaves a layer empty"),
        (dict(mlp_pattern=("dense", "none"), norm_position="parallel"), "model.norm_position='parallel' has both sublayers"),
    ],
)
def test_layers_without_sublayers_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        ModelConfig(**SIZES | changes)


def test_a_sparse_gate_switches_off_its_fraction_of_units():
    config = ModelConfig(**SIZES | dict(gate_sparsity=(0.9,), activation="relu2"))
    x_FD = np.random.default_rng(0).standard_normal((64, 1000)).astype(np.float32) * 3 + 1
    found = largest(jnp.asarray(x_FD), config.layer_kinds[0].sparsity)
    mean, std = np.mean(x_FD, -1, keepdims=True), np.std(x_FD, -1, keepdims=True)
    kept = x_FD > mean + 1.2815516 * std  # Φ(1.28…) = 0.9
    np.testing.assert_array_equal(found > 0, kept)
    assert abs(kept.mean() - 0.1) < 0.005


def test_layers_that_take_keys_have_none_and_no_cache():
    config = ModelConfig(**SIZES | KINDS["shared keys"])
    takes = [kind.takes for kind in config.layer_kinds]
    assert takes == [False] * 3 + [True] * 3 and [kind.gives for kind in config.layer_kinds] == [False, True, True, *takes[:3]]
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(skeleton(config)[1])}
    own = dataclasses.replace(config, shared_kv_layers=0)
    assert sum("attention.key." in name for name in names) == 3
    assert 2 * sum(sizing.cache_bytes_per_token(config).values()) == sum(sizing.cache_bytes_per_token(own).values())
    leaves = [sum(x.nbytes for x in jax.tree.leaves(empty_state(c, 2, 8).layers)) for c in (config, own)]
    assert 2 * leaves[0] == leaves[1]


@pytest.mark.parametrize("key", ["shared_kv_layers", "layer_embed_dim"])
def test_stages_are_refused_where_arrays_go_to_later_layers(key):
    config = ModelConfig(**SIZES | {key: 2})
    with pytest.raises(UserError, match=f"mesh.stage=2 must be 1: model.{key}"):
        check_fit(make_mesh({"stage": 2, "data": 4}), config, 8, 1, 16)


def test_a_clamped_gate_is_its_formula():
    config = ModelConfig(**SIZES | dict(gate_limit=0.1, activation="quick_gelu", mlp_bias=True))
    with nnx.use_eager_sharding(False):
        layer = FeedForward(config, nnx.Rngs(params=0), config.mlp_dim)
    x = np.random.default_rng(0).standard_normal((2, 3, config.embed_dim), np.float32) * 4
    gate, up = (np.asarray(x @ m.weight[...] + m.bias[...]) for m in (layer.gate, layer.up))
    gate, up = np.minimum(gate, 0.1), np.clip(up, -0.1, 0.1)
    expected = (gate / (1 + np.exp(-1.702 * gate)) * (up + 1)) @ np.asarray(layer.down.weight[...]) + layer.down.bias[...]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_queries_grow_with_their_position():
    config = ModelConfig(**SIZES | dict(attention_temperature=0.3, temperature_length=4))
    positions = np.array([[0, 3, 4, 7, 8, 40]])
    steps, _ = steps_of(config, Inputs(positions, positions + 1, positions), None, False)
    np.testing.assert_allclose(steps[False].temperature_BT11[0, :, 0, 0], 1 + 0.3 * np.log1p(positions[0] // 4), rtol=1e-6)


def test_values_of_tokens_are_added_through_gates():
    """Two layers, the second with a table of values; products and norms are the model's own."""
    config = ModelConfig(**SIZES | KINDS["values of tokens"] | dict(num_layers=2))
    graph, params = skeleton(config)[0], parameters(config, scale=4.0)
    tokens, model = tokens_of(3, 2, 12), nnx.merge(graph, params)
    steps, _ = steps_of(config, Inputs(jnp.asarray(tokens)).filled(), None, False)
    x = np.asarray(model.embedding[...])[tokens]
    layers = []
    for stack, of_stack in zip(model.stacks, model.unstacked(), strict=True):
        layers += [pair for of_repeat in of_stack for pair in zip(stack, of_repeat, strict=True)]
    for n, (module, of_layer) in enumerate(layers):
        layer = nnx.merge(nnx.split(module)[0], of_layer)
        normed, attention = layer.attention_norm(x), layer.attention
        values = np.array(attention.value(normed))
        if n == 1:
            gates = 3 / (1 + np.exp(-np.asarray(normed)[..., :12] @ np.asarray(attention.value_embedding.gate.weight[...])))
            values += gates[..., None] * np.asarray(attention.value_embedding.table[...])[tokens].reshape(values.shape)
        heads = attention.query_norm(attention.query(normed)), attention.key_norm(attention.key(normed))
        q, k = (rotate(y, *steps[False].rotary, False) for y in heads)
        x = x + attention.output(reference.attention(q, k, jnp.asarray(values), steps[False].visible, attention.scoring))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
    np.testing.assert_allclose(model(tokens), model.logits(model.norm(x)), atol=1e-4)


def test_looking_ahead_is_its_definition():
    """Module k over a row: one sequence of hidden states a time, written out without the loss's shifts (eq. 21–24)."""
    config = tiny_config(mtp_depth=2, num_layers=1)
    model_config = ModelConfig(**config.model, dtype="float32")
    graph, params = skeleton(model_config)[0], jax.tree.map(lambda p: p, parameters(model_config, scale=3.0))
    for norm in (params["norm"], params["mtp"][0]["norm"]):  # scales of 1 would hide a second norm
        norm["scale"].set_value(jnp.linspace(0.5, 2.0, 32))
    batch = packed_batch(config, seed=2, low=1)
    B, T = batch["tokens"].shape

    rows = np.concatenate((batch["tokens"], batch["targets"][:, -1:]), axis=1)
    segments = np.pad(batch["segment_ids"], ((0, 0), (0, 1)))
    segments[:, -1] = np.where(batch["weights"][:, -1] > 0, segments[:, -2], 0)

    @jax.jit
    def twin(params):
        """log-probabilities of each module."""
        model = nnx.merge(graph, params)
        x = model.hidden(inputs_of(batch)).x_BTD
        steps = steps_of(model_config, inputs_of(batch).filled(), None, prefill=False)[0]
        found = []
        for k, module in enumerate(model.mtp, start=1):
            after = np.zeros((B, T), np.int32)
            after[:, : T + 1 - k] = rows[:, k:]
            both = [module.embedding_norm(model.embedding[...][after]), module.hidden_norm(x)]
            x, _, _ = module.layer(jnp.concatenate(both, -1) @ module.projection.weight[...], steps[False])
            x = module.norm(x)
            found.append(jax.nn.log_softmax(model.logits(x), axis=-1))
        return found

    def loss(params):
        return training_loss(nnx.merge(graph, params), batch, z_loss=0.0, mtp_loss=0.3)

    _, sums = jax.jit(loss)(params)
    total, weight = 0.0, 0
    for k, logp in enumerate(map(np.asarray, twin(params)), start=1):
        for b in range(B):
            for t in range(T - k):
                if segments[b, t] and segments[b, t] == segments[b, t + k + 1]:
                    total, weight = total - logp[b, t, rows[b, t + k + 1]], weight + 1
    nll_ahead, weight_ahead = sums.metrics["loss_ahead"]
    np.testing.assert_allclose(nll_ahead, total, rtol=1e-5)
    assert weight_ahead == weight > 0


def test_windows_latents_and_experts_run_on_a_mesh_as_on_one_device():
    mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    tokens = tokens_of(9, 4, 16)
    kinds = dict(vocab_size=52, num_layers=2, attention_pattern=("local", "global"), window=5, mlp_pattern=("dense", "moe"))
    config = ModelConfig(**SIZES | KINDS["latent, experts"] | kinds)
    graph, abstract = skeleton(config)
    params, whole = parameters(config, scale=4.0), np.asarray(model_of(config)(tokens))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(abstract, mesh))
        split = jax.jit(lambda params: nnx.merge(graph, params)(tokens))(placed)
    np.testing.assert_allclose(split, whole, atol=1e-4)


CHUNKS = dict(
    num_layers=4,
    attention_pattern=("chunk", "global"),
    window=6,
    rotary_pattern=("rotary", "none"),
    qk_norm="unit",
    attention_temperature=0.3,
    temperature_length=4,
)
GEMMA3N = KINDS["shared keys"] | KINDS["streams"] | dict(layer_embed_dim=8)
OVER_AXES = [
    (CHUNKS, {"context": 2, "fsdp": 4}),
    (GEMMA3N, {"context": 2, "tensor": 2, "fsdp": 2}),
    (CHUNKS, {"stage": 2, "fsdp": 4}),
]


@pytest.mark.parametrize("kinds, sizes", all_but(OVER_AXES[1:2], OVER_AXES), ids=str)
def test_packed_rows_over_axes_are_those_of_one_device(kinds, sizes):
    """Also where keys go around a ring of devices, or rows through stages."""
    config = ModelConfig(**SIZES | kinds | dict(vocab_size=52))
    segments = np.repeat([[1, 2]], (9, 23), axis=1).astype(np.int32) + np.zeros((8, 1), np.int32)
    positions = np.concatenate([np.arange(9), np.arange(23)], dtype=np.int32)[None] + 0 * segments
    inputs = Inputs(tokens_of(9, 8, 32), segments, positions)
    graph, abstract = skeleton(config)
    params, whole = parameters(config, scale=4.0), np.asarray(model_of(config)(*inputs[:3]))
    mesh, order = make_mesh(sizes), slots(32, sizes.get("context", 1))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(abstract, mesh))
        over = Inputs(*(jax.device_put(x[:, order], NamedSharding(mesh, spec("batch", "length"))) for x in inputs[:3]))
        split = jax.jit(lambda params, inputs: nnx.merge(graph, params)(inputs))(placed, over)
    np.testing.assert_allclose(split, whole[:, order], atol=1e-4)
