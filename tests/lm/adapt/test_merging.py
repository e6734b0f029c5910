"""Merged models: mergekit's tensors, and what each method does to numbers that can be followed by hand."""

import copy
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
from tests.lm.adapt.models import LATENT, TINY
from tests.lm.convert import peers
from tests.lm.examples import parameters

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


@pytest.mark.parametrize("name", RECIPES)
def test_mergekit_gives_the_same_tensors(name, published, tmp_path):
    mergekit = pytest.importorskip("mergekit.merge")
    config, options = pytest.importorskip("mergekit.config"), pytest.importorskip("mergekit.options")
    recipe, parameters = RECIPES[name]
    base, *models = published
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
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    mergekit.run_merge(
        config.MergeConfiguration.model_validate(said), str(theirs), options.MergeOptions(write_model_card=False)
    )

    has_base = recipe.method not in ("linear", "slerp")
    merged_to_workdir(models, base if has_base else None, tmp_path / "merged", recipe, make_mesh({"fsdp": 8}))
    to_published(tmp_path / "merged", ours)
    expected, got = contents(theirs), contents(ours)
    assert expected.keys() == got.keys()
    for tensor, value in expected.items():
        np.testing.assert_allclose(got[tensor], value, rtol=1e-5, atol=1e-6, err_msg=tensor)


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
    base, model = (arrays_of(parameters(LATENT, seed)) for seed in (0, 1))
    merged = arrays_of(merge(LATENT, Recipe("ties", (1.0,), density=0.25), [parameters(LATENT, 1)], parameters(LATENT, 0)))
    for name, axes in {"embedding": 0, "stacks.0.0.attention.output.weight": 1, "stacks.0.0.feed_forward.gate": 2}.items():
        for at in np.ndindex(base[name].shape[:axes]):
            expected = base[name][at] + largest(model[name][at] - base[name][at], 0.25)
            np.testing.assert_allclose(merged[name][at], expected, atol=1e-6, err_msg=name)


def test_a_mesh_gives_the_same():
    recipe = Recipe("dare_ties", (0.6, 0.5), density=0.5)
    base, *models = (parameters(LATENT, seed) for seed in range(3))
    alone = arrays_of(merge(LATENT, recipe, models, base))
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})
    with jax.set_mesh(mesh):
        base, *models = (jax.device_put(one, shardings(one, mesh)) for one in (base, *models))
        split = arrays_of(merge(LATENT, recipe, models, base))
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
