"""Merged models: mergekit's tensors, and what each method does to numbers that can be followed by hand."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.adapt.merging import Recipe, dropped, largest, merge, slerp
from lm.adapt.rebuild import arrays_of
from lm.convert.files import tensors_of_file
from lm.convert.to_published import to_published
from lm.convert.to_workdir import merged_to_workdir
from lm.errors import UserError
from lm.parallel.mesh import make_mesh, shardings
from tests import golden
from tests.lm.adapt.models import LATENT, TINY
from tests.lm.convert import peers
from tests.lm.convert.handmade import HF, written
from tests.lm.examples import parameters
from tests.slow import all_but

RECIPES = {
    "linear": (Recipe("linear", (0.7, 0.5)), {"normalize": True}),
    "linear-sum": (Recipe("linear", (0.7, -0.2), normalize=False), {"normalize": False}),
    "slerp": (Recipe("slerp", (1.0, 1.0), t=0.3), {"t": 0.3}),
    "task_arithmetic": (Recipe("task_arithmetic", (0.7, -0.4), scale=0.8), {"lambda": 0.8}),
    "ties": (Recipe("ties", (0.7, 0.5), density=0.3), {}),
    "ties-sum": (Recipe("ties", (1.0, 0.5), density=0.6, scale=1.3, normalize=False), {"normalize": False, "lambda": 1.3}),
    "dare_ties": (Recipe("dare_ties", (0.7, 0.5)), {}),  # all stays, because random numbers differ
    "dare_linear": (Recipe("dare_linear", (0.7, 0.5)), {}),
}
OFTEN = ("linear-sum", "slerp", "task_arithmetic", "ties-sum", "dare_ties")  # which have all settings


GOLDEN = Path(__file__).with_name("mergekit.npz")
TINY_HF = {
    **HF,
    **dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, dtype="float32"),
    **dict(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> list[Path]:
    """A base and two models with its shapes, made by hand."""
    attention = {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "o_proj": (16, 16)}
    layer = {f"self_attn.{name}": shape for name, shape in attention.items()}
    layer |= {"mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)}
    layer |= {"input_layernorm": (16,), "post_attention_layernorm": (16,)}
    shapes = {"model.embed_tokens": (24, 16), "lm_head": (24, 16), "model.norm": (16,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    drawn = np.random.default_rng(0).standard_normal
    base = {f"{name}.weight": drawn(shape, np.float32) for name, shape in shapes.items()}
    models = [base, *({name: x + 0.1 * drawn(x.shape, np.float32) for name, x in base.items()} for _ in range(2))]
    return [written(tmp_path_factory.mktemp("models") / "one", one, TINY_HF) for one in models]


@pytest.fixture(scope="module", params=["llama-tied", "qwen2"])
def published(request, tmp_path_factory) -> list[Path]:
    """A base and two models with its shapes, as folders of transformers."""
    import torch

    folders, model = [], copy.deepcopy(peers.peer(request.param))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in model.parameters():
                x.add_(0.1 * torch.randn(x.shape, generator=generator))
        folders.append(tmp_path_factory.mktemp("models") / f"{request.param}{seed}")
        peers.saved(model, folders[-1])
    return folders


def by_mergekit(name: str, folders: list[Path], to: Path) -> dict[str, np.ndarray]:
    mergekit = pytest.importorskip("mergekit.merge")
    config, options = pytest.importorskip("mergekit.config"), pytest.importorskip("mergekit.options")
    recipe, parameters = RECIPES[name]
    base, *models = folders
    entries = [
        {"model": str(path), "parameters": {"weight": weight, "density": recipe.density}}
        for path, weight in zip(models, recipe.weights, strict=True)
    ]
    said = {"merge_method": recipe.method, "models": entries, "dtype": "float32", "parameters": parameters}
    if recipe.method == "slerp":
        said |= {"base_model": str(models[0]), "models": [{"model": str(path)} for path in models]}
    elif recipe.method != "linear":
        said["base_model"] = str(base)
    else:
        for entry in entries:
            del entry["parameters"]["density"]
    mergekit.run_merge(config.MergeConfiguration.model_validate(said), str(to), options.MergeOptions(write_model_card=False))
    return contents(to)


def ours(name: str, folders: list[Path], to: Path, mesh) -> dict[str, np.ndarray]:
    recipe, (base, *models) = RECIPES[name][0], folders
    has_base = recipe.method not in ("linear", "slerp")
    merged_to_workdir(models, base if has_base else None, to / "merged", recipe, mesh)
    to_published(to / "merged", to / "ours")
    return contents(to / "ours")


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        np.testing.assert_allclose(found[tensor], value, rtol=1e-5, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("name", all_but(OFTEN, RECIPES))
def test_the_tensors_are_those_that_mergekit_gave(name, tiny, tmp_path):
    assert_same(ours(name, tiny, tmp_path, make_mesh({}, jax.devices()[:1])), golden.stored(GOLDEN, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_mergekit_still_gives_them(name, tiny, tmp_path):
    golden.check(GOLDEN, name, by_mergekit(name, tiny, tmp_path / "theirs"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_mergekit_gives_the_same_tensors(name, published, tmp_path):
    expected = by_mergekit(name, published, tmp_path / "theirs")
    assert_same(ours(name, published, tmp_path, make_mesh({"fsdp": 8})), expected)


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: tensor.read().astype(np.float32)
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in tensors_of_file(file).items()
    }


def test_the_largest_changes_stay():
    np.testing.assert_array_equal(largest(jnp.array([0.1, -4, 3, 0.2, -5, 1]), 0.5), [0, -4, 3, 0, -5, 0])
    np.testing.assert_array_equal(largest(jnp.array([[2.0, 1], [2, 3]]), 0.1), [[0, 0], [0, 3]])
    np.testing.assert_array_equal(largest(jnp.array([2.0, -2, 2]), 0.5), [2, 0, 0])
    np.testing.assert_array_equal(largest(jnp.array([2.0, -2, 2]), 0.0), [0, 0, 0])


def test_slerp_by_hand():
    x, y = jnp.array([3.0, 0]), jnp.array([0, 4.0])
    np.testing.assert_allclose(slerp(x, y, 0.5), np.array([3, 4]) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(slerp(x, y, 0.0), x, atol=1e-6)
    np.testing.assert_allclose(slerp(x, 2 * x, 0.25), 1.25 * x)  # parallel: linear
    assert np.isfinite(slerp(jnp.zeros(2), y, 0.5)).all()


def test_dare_keeps_the_mean_and_the_share():
    x = jnp.ones(100_000)
    kept = dropped(jax.random.key(0), x, 0.2)
    assert set(np.unique(kept)) == {0, 5}
    np.testing.assert_allclose([np.mean(kept != 0), kept.mean()], [0.2, 1], rtol=0.02)


def test_each_layer_and_each_expert_is_a_tensor_of_its_own():
    base, model = ({name: np.asarray(x) for name, x in arrays_of(parameters(LATENT, seed)).items()} for seed in (0, 1))
    merged = arrays_of(merge(LATENT, Recipe("ties", (1.0,), density=0.25), [parameters(LATENT, 1)], parameters(LATENT, 0)))
    for name, axes in {"embedding": 0, "stacks.0.0.attention.output.weight": 1, "stacks.0.0.feed_forward.gate": 2}.items():
        for at in np.ndindex(base[name].shape[:axes]):
            change = model[name][at] - base[name][at]
            rank = np.argsort(np.argsort(-np.abs(change), axis=None)).reshape(change.shape)
            expected = base[name][at] + np.where(rank < int(0.25 * change.size), change, 0)
            np.testing.assert_allclose(merged[name][at], expected, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_mesh_gives_the_same():
    recipe = Recipe("dare_ties", (0.6, 0.5), density=0.5)
    experts = dataclasses.replace(LATENT.moe, shared_dim=0)
    config = dataclasses.replace(TINY, qkv_bias=False, tie_embeddings=True, mlp_pattern=("moe",), moe=experts)
    base, *models = (parameters(config, seed) for seed in range(3))
    alone = arrays_of(merge(config, recipe, models, base))
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    with jax.set_mesh(mesh):
        base, *models = (jax.device_put(one, shardings(one, mesh)) for one in (base, *models))
        split = arrays_of(merge(config, recipe, models, base))
    for name, x in alone.items():
        np.testing.assert_allclose(split[name], x, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "recipe, models, base, words",
    [
        (Recipe("slerp", (1.0,) * 3), 3, None, "slerp merges two models, without a base: here are 3"),
        (Recipe("ties", (1.0,) * 2), 2, None, "ties needs the base"),
        (Recipe("linear", (1.0,) * 2), 2, 1, "linear takes no base"),
        (Recipe("linear", (1.0,)), 2, None, "1 weights for 2 models"),
        (Recipe("linear", (1.0, -1.0)), 2, None, "add up to 0"),
        (Recipe("linear", (1.0, float("nan"))), 2, None, "finite"),
    ],
)
def test_a_recipe_that_does_not_fit(recipe, models, base, words):
    one = parameters(TINY, 0)
    with pytest.raises(UserError, match=words):
        merge(TINY, recipe, [one] * models, one if base else None)
