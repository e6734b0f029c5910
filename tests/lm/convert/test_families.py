"""Every family against transformers: random tiny models, logits, gradients, greedy tokens, and the way back."""

import copy
import dataclasses
import functools
import json
import tempfile
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from lm.config import ModelConfig
from lm.convert.essence import essence
from lm.convert.families import family_for, family_of, is_ignored, model_config
from lm.convert.published import open_published
from lm.convert.rows import Family, ours_of, places, theirs_of
from lm.model.cache import empty_state
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.convert import peers
from tests.slow import all_but

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.numpy").save_file
MtpModel = pytest.importorskip("transformers.modeling_layers").MtpModel


OFTEN = ("llama", "llama-longrope", "gpt2", "gemma3", "phi3", "qwen3-moe-sparse", "deepseek-v3")  # differ the most
NEW_IDEAS = (
    "smollm3",
    "olmo3",
    "granite",
    "cohere2",
    "glm4",
    "hunyuan",
    "nemotron",
    "gpt-oss",
    "ministral3",
    "llama4-odd",
    "gemma3n-odd",
    "deepseek-v32-odd",
)
OF_EACH = (
    *OFTEN,
    *NEW_IDEAS,
    "seed-oss",
    "ernie4-5",
    "exaone4",
    "cohere",
    "glm",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma2",
    "olmo2",
    "deepseek-v2",
    "lfm2",
    "qwen3-next",
    "bamba",
    "granite4",
    "granite4-dense",
    "nemotron-h",
    "llama4",
    "qwen3-5",
    "qwen3-5-moe",
    "gemma3n",
    "deepseek-v32",
    "glm-dsa",
)


class Case(NamedTuple):
    """A peer, what it wrote to disk, and what we read there."""

    model: object
    tensors: dict[str, np.ndarray]
    family: Family
    config: ModelConfig
    arrays: dict[str, np.ndarray]  # our parameters by path


@pytest.fixture(scope="module", autouse=True)
def quick():
    """There is more to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    @functools.cache
    def made(name: str) -> Case:
        model = peers.peer(name)
        hf, tensors = peers.saved(model, tmp_path_factory.mktemp(name))
        family, config = family_of(hf), dataclasses.replace(model_config(hf, tensors), remat="none")
        return Case(model, tensors, family, config, arrays_of(family, config, tensors))

    return made


def arrays_of(family, config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters from their tensors, a row at a time; whatever is read elsewhere must agree with this."""
    shapes = {path: variable.get_value().shape for path, variable in variables(config).items()}
    arrays = {path: np.full(shape, np.nan, np.float32) for path, shape in shapes.items()}
    for path, index, row in places(family, config):
        arrays[path][index] = ours_of(row, tensors[row.theirs])
    return arrays


def known(family, config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is ours of a checkpoint, by the names of the rows."""
    named = {family.canonical(name): x for name, x in tensors.items()}
    return {name: x for name, x in named.items() if not is_ignored(family, config, name)}


def tensors_of(family, config: ModelConfig, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse."""
    rows: dict[str, list] = {}
    for place in places(family, config):
        rows.setdefault(place.row.theirs, []).append(place)
    return {
        name: theirs_of([place.row for place in found], [arrays[place.path][place.index] for place in found])
        for name, found in rows.items()
    }


def variables(config: ModelConfig) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(skeleton(config)[1])}


def params_of(case: Case) -> nnx.State:
    abstract = nnx.to_flat_state(skeleton(case.config)[1])
    return nnx.from_flat_state(
        [(path, variable.replace(jax.device_put(case.arrays[".".join(map(str, path))]))) for path, variable in abstract]
    )


@pytest.mark.parametrize("name", all_but(OF_EACH, peers.PEERS))
def test_every_tensor_has_its_place_and_comes_back_bit_for_bit(case, name):
    model, tensors, family, config, arrays = case(name)
    assert not any(np.isnan(array).any() for array in arrays.values())
    exported = tensors_of(family, config, arrays)
    assert exported.keys() == known(family, config, tensors).keys()
    for key, x in exported.items():
        np.testing.assert_array_equal(x, tensors[key], strict=True)


@pytest.mark.parametrize("name", all_but([*(set(OFTEN) - {"llama-longrope"}), *NEW_IDEAS], peers.PEERS))  # so is phi3
def test_logits_and_gradients_on_padded_batches_beyond_the_original_context(case, name):
    tokens, real, positions = peers.batch(name)
    upstream = np.random.default_rng(2).standard_normal((*tokens.shape, peers.VOCAB)).astype(np.float32)
    upstream *= real[..., None] / real.sum()
    logits, gradients = ours(case(name), tokens, real, positions, upstream)
    their_logits, their_gradients = theirs(case(name), tokens, real, positions, upstream)
    assert np.std(their_logits[real]) > 0.5
    np.testing.assert_allclose(logits[real], their_logits[real], rtol=0, atol=1e-4)
    largest = max(np.abs(x).max() for x in gradients.values())
    for path, x in gradients.items():
        expected = 0 if path.endswith("balance_bias") else their_gradients[path]
        # GPT-2's key biases change no softmax: their gradient is rounding alone.
        scale = max(np.abs(expected).max(), 1e-3 * largest)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-3 * scale, err_msg=path)


STAGES = {"ministral3"}  # whose rows carry more than angles
ODD = {"qwen3-next-biases", "bamba-one-group"}  # whose 3 and 5 heads of states `mesh.tensor` cannot divide


@pytest.mark.parametrize("name", all_but(("cohere2",), peers.PEERS))
def test_a_mesh_and_a_cache_change_nothing(case, name):
    """Eight devices; and the second half of the tokens, which attend to the first half in a cache."""
    config, params = case(name).config, params_of(case(name))
    graph, abstract = skeleton(config)
    tokens, real, positions = (x[np.arange(8) % 3] for x in peers.batch())
    segments, half = real.astype(np.int32), peers.LENGTH // 2

    def whole(params):
        return nnx.merge(graph, params)(Inputs(tokens, segments, positions))

    def halves(params):
        model, memory, parts = nnx.merge(graph, params), empty_state(config, len(tokens), peers.LENGTH), []
        for part, prefill in ((np.s_[:, :half], True), (np.s_[:, half:], False)):
            inputs = Inputs(tokens[part], segments[part], positions[part])
            logits, memory = model(inputs, memory, prefill=prefill)
            parts.append(logits)
        return jnp.concatenate(parts, axis=1)

    expected = jax.jit(whole)(params)
    if not config.rope.depends_on_length:  # else the first half has other angles
        np.testing.assert_allclose(jax.jit(halves)(params)[real], expected[real], rtol=0, atol=2e-4)
    sizes = {"fsdp": 2, "tensor": 2} | {"expert" if config.moe.num_experts else "data": 2}
    sizes = {"stage": 2, "fsdp": 4} if name in STAGES else sizes
    mesh = make_mesh({"fsdp": 4, "data": 2} if config.num_kv_heads % 2 or name in ODD else sizes)
    with jax.set_mesh(mesh):
        logits = jax.jit(whole)(jax.device_put(params, shardings(abstract, mesh)))
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], rtol=0, atol=2e-4)


def ours(case: Case, tokens, real, positions, upstream):
    graph, _ = skeleton(case.config)

    def loss(params):
        logits = nnx.merge(graph, params)(Inputs(tokens, real.astype(np.int32), positions))
        return jnp.sum(logits * upstream), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, logits), gradients = step(params_of(case))
    named = {".".join(map(str, path)): np.asarray(x.get_value()) for path, x in nnx.to_flat_state(gradients)}
    return np.asarray(logits), named


def theirs(case: Case, tokens, real, positions, upstream):
    """Their logits; their gradients by our names. They are saved as if they were weights, to have the names of those."""
    model = copy.deepcopy(case.model)
    arguments = {"attention_mask": torch.tensor(real).long(), "position_ids": torch.tensor(positions), "use_cache": False}
    logits = forgetful(model)(torch.tensor(tokens), **arguments).logits
    (logits * torch.tensor(upstream)).sum().backward()
    for x in model.parameters():
        x.data = torch.zeros_like(x) if x.grad is None else x.grad
    with tempfile.TemporaryDirectory() as folder:
        _, tensors = peers.saved(model, Path(folder))
    return logits.detach().numpy(), arrays_of(case.family, case.config, tensors)


def forgetful(model):
    """The model itself. Dynamic NTK remembers the longest sequence that it has seen, until it sees a short one."""
    with torch.no_grad():
        model(torch.ones(1, 1, dtype=torch.long))
    return model


@pytest.mark.parametrize("name", all_but(("llama-longrope", "deepseek-v3"), peers.PEERS))
def test_greedy_tokens(case, name):
    model, config = case(name).model, case(name).config
    tokens, real, _ = peers.batch(name)
    tokens, real = tokens[:, -24:], real[:, -24:]
    counted = name in peers.COUNTS_PADDING
    real &= (np.arange(24) >= np.array([[0], [11], [4]])) | (real.all() and not counted)
    graph, _ = skeleton(config)
    # No token is the end; a stand-in tells so.
    tokenizer = types.SimpleNamespace(stop_ids=(), eos_id=-1, vocab_size=peers.VOCAB)
    prompts = [row[keep].tolist() for row, keep in zip(tokens, real)]
    drawn = lm.generate(nnx.merge(graph, params_of(case(name))), tokenizer, prompts, max_new_tokens=32, temperature=0)
    options = {"do_sample": False, "max_new_tokens": 32, "use_cache": name not in CACHELESS}
    # Where angles depend on the longest row of a batch, or scales on its padding, ours are those of each row alone.
    alone = config.rope.depends_on_length or counted
    batches = [[row] for row in range(len(tokens))] if alone else [list(range(len(tokens)))]
    expected = []
    for rows in batches:
        begin = 24 - max(real[rows].sum(axis=1))
        ids, mask = torch.tensor(np.where(real, tokens, 0)[rows, begin:]), torch.tensor(real[rows, begin:]).long()
        with torch.no_grad():
            found = forgetful(model).generate(ids, attention_mask=mask, pad_token_id=0, **options)
        expected += found[:, ids.shape[1] :].tolist()
    assert len({token for row in drawn for token in row}) > 8
    assert drawn == expected


# Where transformers keeps keys that were turned by the short factors, or clamps steps in whole passes alone.
CACHELESS = {"llama-longrope", "nemotron-h-dense"}


@pytest.mark.parametrize("name", all_but(OFTEN, peers.PEERS))
def test_transformers_loads_our_export_to_the_same_logits(case, name, tmp_path):
    model, _, family, config, arrays = case(name)
    assert family_for(config, family.name) is family
    again = loaded(write(tmp_path, family, config, tensors_of(family, config, arrays)))
    tokens, real, positions = (torch.tensor(x) for x in peers.batch())
    with torch.no_grad():
        expected, logits = (
            forgetful(m)(tokens, attention_mask=real.long(), position_ids=positions).logits for m in (model, again)
        )
    np.testing.assert_array_equal(logits, expected)


def write(folder: Path, family, config: ModelConfig, tensors: dict[str, np.ndarray]) -> Path:
    (folder / "config.json").write_text(json.dumps(family.to_hf(config)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(folder: Path):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model


SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
PIXTRAL = {**SIGLIP, "model_type": "pixtral", "head_dim": 8}


@pytest.mark.parametrize(
    ("name", "outer", "vision", "more"),
    [
        ("gemma3", "Gemma3", SIGLIP, {"mm_tokens_per_image": 4}),
        ("ministral3", "Mistral3", PIXTRAL, {"tie_word_embeddings": False}),
    ],
)
def test_a_model_that_sees_is_read_as_its_language_model(case, tmp_path, name, outer, vision, more):
    text, (_, _, _, config, arrays) = peers.peer_config(name), case(name)
    vision = vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    both = getattr(transformers, f"{outer}Config")(text_config=text.to_dict(), vision_config=vision, **more)
    model = getattr(transformers, f"{outer}ForConditionalGeneration")(both)
    model.model.language_model.load_state_dict(case(name).model.model.state_dict())
    model.lm_head.load_state_dict(case(name).model.lm_head.state_dict())
    hf, tensors = peers.saved(model, tmp_path)
    family = family_of(hf)
    assert essence(model_config(hf, tensors)) == essence(config)
    read = known(family, config, tensors)
    assert len(read) < len(tensors)
    for path, x in arrays_of(family, config, read).items():
        np.testing.assert_array_equal(x, arrays[path])


@pytest.mark.parametrize(
    ("name", "kind", "prefixes", "other"),
    [
        ("llama4-odd", "llama4", ("model.", "language_model.model."), "vision_model.model.class_embedding"),
        ("qwen3-5-biases", "qwen3_5", ("model.", "model.language_model."), "model.visual.pos_embed.weight"),
        ("gemma3n-odd", "gemma3n", ("model.", "model.language_model."), "model.audio_tower.conformer.0.norm.weight"),
    ],
)
def test_the_names_and_the_section_of_a_language_model_among_others(case, name, kind, prefixes, other):
    _, tensors, family, config, _ = case(name)
    named = {key.replace(*prefixes, 1): x for key, x in tensors.items()}
    assert known(family, config, {**named, other: np.zeros(1)}).keys() == known(family, config, tensors).keys()
    read = model_config({"model_type": kind, "text_config": peers.peer_config(name).to_dict()}, named)
    assert essence(read) == essence(config) and family_of({"model_type": kind}) is family


def test_keys_of_layers_that_take_those_of_others_are_not_read(case):
    """Published checkpoints hold them, and transformers does not read them either."""
    _, tensors, family, config, _ = case("gemma3n")
    last, before = (f"model.layers.{i}.self_attn.k_proj.weight" for i in (4, 3))
    assert before in tensors and last not in tensors
    assert is_ignored(family, config, last) and not is_ignored(family, config, before)


def test_experts_of_a_layer_in_one_tensor(case, tmp_path):
    """As Qwen 3.5 is published; transformers writes a tensor for each expert."""
    _, tensors, family, config, arrays = case("qwen3-5-moe")
    whole = {name: x for name, x in tensors.items() if ".experts." not in name}
    for i in range(config.num_layers):
        at, experts = f"model.layers.{i}.mlp.experts.", range(config.moe.num_experts)
        gate, up, down = ([tensors[f"{at}{e}.{part}_proj.weight"] for e in experts] for part in ("gate", "up", "down"))
        whole[f"{at}gate_up_proj"] = np.concatenate((np.stack(gate), np.stack(up)), axis=1)
        whole[f"{at}down_proj"] = np.stack(down)
    published = open_published(write(tmp_path, family, config, whole))
    for path, x in arrays.items():
        parts = [published.block(path, (r,), x.shape[1:]) for r in range(len(x))] if path.startswith("stacks.") else None
        np.testing.assert_array_equal(published.block(path, (), x.shape) if parts is None else np.stack(parts), x)


def test_gpt2_without_prefix_and_with_masks(case):
    _, tensors, family, config, _ = case("gpt2")
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    masks = {f"h.{i}.attn.{name}": np.ones(1, np.float32) for i in range(2) for name in ("bias", "masked_bias")}
    assert known(family, config, bare | masks).keys() == tensors.keys()


def test_modules_that_predict_further_tokens(case, tmp_path, monkeypatch):
    """Two of them on top of DeepSeek-V3, which transformers has as a model of their own that reads the same checkpoint."""
    _, tensors, family, config, _ = case("deepseek-v3")
    config = dataclasses.replace(config, mtp_depth=2)
    rng = np.random.default_rng(3)
    whole = {row.theirs: rng.standard_normal(row.theirs_shape, np.float32) for _, _, row in places(family, config)}
    whole = {name: x / x.shape[-1] ** 0.5 if x.ndim > 1 else 1 + 0.2 * x for name, x in whole.items()} | tensors
    for row in family.copies(config):
        whole[row.theirs] = whole["model.embed_tokens.weight" if row.ours == "embedding" else "lm_head.weight"]
    hf = family.to_hf(config)
    assert model_config(hf, whole).mtp_depth == 2 and model_config(hf, tensors).mtp_depth == 0
    assert all(is_ignored(family, config, row.theirs) for row in family.copies(config))

    kind = transformers.DeepseekV3ForCausalLM
    monkeypatch.setattr(kind, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[34].*"])
    main = loaded(write(tmp_path, family, config, whole))
    modules = MtpModel.from_pretrained(main, attn_implementation="eager").eval()
    tokens = torch.tensor(peers.batch()[0][:1])
    hidden, expected = main(tokens, output_hidden_states=True).hidden_states[-1], []
    for k in range(2):
        after = tokens[:, k + 1 :]
        hidden = modules.forward_layer(k, hidden[:, :-1], k + 1 + torch.arange(after.shape[1])[None], None, input_ids=after)
        expected.append(main.lm_head(hidden).detach().numpy())

    params = params_of(Case(main, whole, family, config, arrays_of(family, config, whole)))
    graph, _ = skeleton(config)

    @jax.jit
    def ahead(params, tokens, targets):
        model = nnx.merge(graph, params)
        segments, positions = jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None]
        whole = model.hidden(Inputs(tokens, segments, positions))
        return [model.logits(one.x_BTD) for one in model.ahead(whole.x_BTD, targets, segments, positions)]

    for k, logits in enumerate(ahead(params, tokens.numpy()[:, :-1], tokens.numpy()[:, 1:])):
        np.testing.assert_allclose(logits[:, : logits.shape[1] - k], expected[k], rtol=0, atol=1e-4)
