"""Models that see or hear against transformers: logits, gradients, greedy tokens, and the way back."""

import copy
import dataclasses
import functools
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from lm.convert.families import family_for, family_of, model_config
from lm.model.inputs import Inputs
from lm.model.media import Media
from lm.model.transformer import skeleton
from tests.lm.convert import multimodal_peers, peers
from tests.lm.convert.test_families import Case, arrays_of, known, params_of, tensors_of, write
from tests.slow import all_but

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
OFTEN = ("idefics3", "llava-clip", "voxtral")


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
        model = multimodal_peers.peer(name)
        hf, tensors = peers.saved(model, tmp_path_factory.mktemp(name))
        family, config = family_of(hf), dataclasses.replace(model_config(hf, tensors), remat="none")
        tensors = known(family, config, tensors)
        return Case(model, tensors, family, config, arrays_of(family, config, tensors))

    return made


def media_of(config, media: np.ndarray) -> Media:
    return Media(images_BNHWC=media) if config.vision.num_layers else Media(audio_BNTM=media)


@pytest.mark.parametrize("name", all_but(OFTEN, multimodal_peers.PEERS))
def test_every_tensor_has_its_place_and_comes_back_bit_for_bit(case, name):
    _, tensors, family, config, arrays = case(name)
    assert not any(np.isnan(array).any() for array in arrays.values())
    exported = tensors_of(family, config, arrays)
    assert exported.keys() == tensors.keys()
    for key, x in exported.items():
        np.testing.assert_array_equal(x, tensors[key], strict=True)


@pytest.mark.parametrize("name", all_but(OFTEN, multimodal_peers.PEERS))
def test_logits_and_gradients(case, name):
    tokens, real, positions, media, theirs = multimodal_peers.batch(name)
    upstream = np.random.default_rng(2).standard_normal((*tokens.shape, peers.VOCAB)).astype(np.float32)
    upstream *= real[..., None] / real.sum()
    config, graph = case(name).config, skeleton(case(name).config)[0]

    def loss(params):
        logits = nnx.merge(graph, params)(Inputs(tokens, real.astype(np.int32), positions, media=media_of(config, media)))
        return jnp.sum(logits * upstream), logits

    (_, logits), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(params_of(case(name)))
    gradients = {".".join(map(str, path)): np.asarray(x.get_value()) for path, x in nnx.to_flat_state(found)}

    model = copy.deepcopy(case(name).model)
    arguments = {"attention_mask": torch.tensor(real).long(), "position_ids": torch.tensor(positions), "use_cache": False}
    expected = model(torch.tensor(tokens), **arguments, **{key: torch.tensor(x) for key, x in theirs.items()}).logits
    (expected * torch.tensor(upstream)).sum().backward()
    expected = expected.detach().numpy()
    assert np.std(expected[real]) > 0.5
    np.testing.assert_allclose(logits[real], expected[real], rtol=0, atol=1e-4)

    for x in model.parameters():
        x.data = torch.zeros_like(x) if x.grad is None else x.grad
    with tempfile.TemporaryDirectory() as folder:
        _, saved = peers.saved(model, Path(folder))
    family = case(name).family
    their_gradients = arrays_of(family, config, known(family, config, saved))
    largest = max(np.abs(x).max() for x in gradients.values())
    assert any(np.abs(x).max() > 1e-3 * largest for path, x in gradients.items() if ".layers." in path)
    for path, x in gradients.items():
        scale = max(np.abs(their_gradients[path]).max(), 1e-3 * largest)
        np.testing.assert_allclose(x, their_gradients[path], rtol=0, atol=1e-3 * scale, err_msg=path)


@pytest.mark.parametrize("name", all_but(OFTEN, multimodal_peers.PEERS))
def test_transformers_loads_our_export_to_the_same_logits(case, name, tmp_path):
    model, _, family, config, arrays = case(name)
    folder = write(tmp_path, family, config, tensors_of(family, config, arrays))
    again, report = type(model).from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    tokens, real, positions, _, theirs = multimodal_peers.batch(name)
    arguments = {"attention_mask": torch.tensor(real).long(), "position_ids": torch.tensor(positions)}
    arguments |= {key: torch.tensor(x) for key, x in theirs.items()}
    with torch.no_grad():
        expected, logits = (one(torch.tensor(tokens), **arguments).logits for one in (model, again))
    np.testing.assert_array_equal(logits, expected)
    assert family_for(config).to_hf(config)["text_config"] == family.to_hf(config)["text_config"]


@pytest.mark.parametrize("name", all_but(("idefics3", "voxtral"), multimodal_peers.PEERS))
def test_greedy_answers(case, name):
    model, config = case(name).model, case(name).config
    tokens, real, _, media, theirs = multimodal_peers.batch(name)
    graph = skeleton(config)[0]
    prompts = [row[keep].tolist() for row, keep in zip(tokens, real)]
    tokenizer = types.SimpleNamespace(stop_ids=(), eos_id=-1, vocab_size=peers.VOCAB)  # no token is the end
    options = dict(max_new_tokens=24, temperature=0)
    ours = nnx.merge(graph, params_of(case(name)))
    drawn = lm.generate(ours, tokenizer, prompts, media=media_of(config, media), **options)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(real).long(),
            pad_token_id=0,
            do_sample=False,
            max_new_tokens=24,
            **{key: torch.tensor(x) for key, x in theirs.items()},
        )
    assert len({token for row in drawn for token in row}) > 8
    assert drawn == expected[:, tokens.shape[1] :].tolist()
    assert drawn[:2] != lm.generate(ours, tokenizer, prompts[:2], media=media_of(config, media[1::-1]), **options)
