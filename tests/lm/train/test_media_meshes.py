"""Training with images and sound: the same losses and gradients on any mesh, packed or not."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from configs.align import sft as sft_config
from lm.align import sft
from lm.errors import UserError
from lm.model import sizing
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, make_mesh, shardings
from lm.train.describe import memories
from lm.train.feed import Feed
from lm.train.fit import check_memory
from lm.train.step import added, make_trainer, model_config_of
from tests.lm.examples import packed_batch, parameters, tiny_config, trainer_and_state
from tests.slow import all_but

VISION = dict(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, image_size=8, patch_size=4, token_id=62)
AUDIO = dict(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, num_mels=4, num_frames=16, stack=4, token_id=63)
N = 3  # images and windows of a row
RUNS = {
    "fsdp 8": ({"fsdp": 8}, 1),
    "data 2, fsdp 2, tensor 2, accumulate 2": ({"data": 2, "fsdp": 2, "tensor": 2}, 2),
    "context 2, fsdp 2, tensor 2": ({"context": 2, "fsdp": 2, "tensor": 2}, 1),
    "stage 2, data 2, tensor 2": ({"stage": 2, "data": 2, "tensor": 2}, 1),
    "context 4, data 2, accumulate 2": ({"context": 4, "data": 2}, 2),
}
QUICK = ["context 2, fsdp 2, tensor 2"]


def config_of(accumulate: int = 1):
    config = tiny_config(vision=VISION, audio=AUDIO)
    config.batch_size, config.steps, config.accumulate = 8, 20, accumulate
    return config


def batch_of(config, seed: int) -> dict[str, np.ndarray]:
    """Packed rows in which some tokens are places of images or of sound, of which no row has more than it has vectors for."""
    rng, batch = np.random.default_rng(seed), packed_batch(config, seed)
    batch["tokens"] = batch["tokens"] % 62
    for token, each in ((62, 4), (63, 2)):
        for row in batch["tokens"]:
            row[rng.permutation(len(row))[: rng.integers(0, N * each + 1)]] = token
    batch["images"] = rng.standard_normal((config.batch_size, N, 8, 8, 3)).astype(np.float32)
    batch["audio"] = rng.standard_normal((config.batch_size, N, 16, 4)).astype(np.float32)
    return batch


def run(sizes, accumulate):
    """(loss, its gradient)."""
    config = config_of(accumulate)
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    check_fit(mesh, model_config_of(config), config.batch_size, accumulate, config.sequence_length)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        objective, (graph, abstract) = trainer.objective, skeleton(model_config_of(config))
        params = jax.device_put(parameters(model_config_of(config)), shardings(abstract, mesh))
        feed = Feed(types.SimpleNamespace(batch_size=8, sequence_length=config.sequence_length), mesh)

        @jax.jit
        def gradient(params, batch):
            def loss(params, part):
                sums = objective.loss(nnx.merge(graph, params), part, None, train=True, key=jax.random.key(0))
                return jax.tree.map(lambda x: x / objective.weight(batch), sums)

            grad = jax.value_and_grad(loss, has_aux=True)
            return grad(params, batch) if accumulate == 1 else added(grad, params, batch, accumulate)

        (total, _), grads = gradient(params, feed.to_devices(batch_of(config, 0)))
    return float(total), jax.device_get(grads)


@pytest.fixture(scope="module")
def one_device():
    return run({}, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_but(QUICK, RUNS))
def test_as_on_one_device(one_device, name):
    loss, gradient = run(*RUNS[name])
    assert loss == pytest.approx(one_device[0], rel=1e-5)
    for ours, expected in zip(*map(jax.tree.leaves, (gradient, one_device[1])), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max() + 1e-9)


@pytest.mark.slow
def test_encoders_learn(one_device):
    """All but the positions of sound, which are fixed."""
    for name in ("vision", "audio"):
        still = [path for path, slope in by_path(one_device[1][name]) if not slope.any()]
        assert all("positions" in path for path in still) and len(still) == (name == "audio"), still


def test_frozen_parameters_stay_as_they_are():
    config = config_of()
    config.model.frozen = r"(vision|audio)\.(?!projector).*|embedding|stacks\..*"
    trainer, state = trainer_and_state(config)
    after, _ = jax.jit(trainer.step)(state, batch_of(config, 0))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), state.params, after.params)
    flat = dict(by_path(moved))
    learnt = {path for path, x in flat.items() if x}
    assert learnt == {path for path in flat if ".projector." in path or path in (".norm.scale", ".head")}, learnt
    sizes = sum(x.size for path, x in by_path(state.params) if path in learnt)
    assert sum(sizing.parameters(model_config_of(config))["trained"].values()) == sizes
    assert len(jax.tree.leaves(after.optimizer[0].mu)) == len(learnt)
    config.model.frozen = ".*"
    with pytest.raises(UserError, match="model.frozen='.*' leaves nothing to train"):
        make_trainer(config)


def by_path(tree):
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        yield "".join(f".{key.key}" for key in path[:-1]), x


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretraining", "sft"])
def test_packed_is_the_sum_of_examples_alone(kind):
    config, objective = config_of(), None
    if kind == "sft":
        config.sft = sft_config.get_config().sft
        objective = sft.objective(config)
    trainer, (_, state) = make_trainer(config, objective), trainer_and_state(config)
    batch, evaluate = batch_of(config, 0), jax.jit(trainer.evaluate)
    together = evaluate(state.params, batch)
    alone = {name: [] for name in batch}
    for row in range(config.batch_size):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            own = batch["segment_ids"][row] == segment
            for name in ("tokens", "targets", "segment_ids", "positions", "weights"):
                alone[name].append(np.pad(batch[name][row][own], (0, config.sequence_length - own.sum())))
            # Vectors are cut into images, so an example of this test may begin within one: pad its tokens in front.
            for name, token in (("images", 62), ("audio", 63)):
                alone[name].append(batch[name][row])
                skipped = np.flatnonzero(batch["segment_ids"][row] == segment)[0]
                before = int((batch["tokens"][row][:skipped] == token).sum())
                for key, x in (("tokens", token), ("targets", 0), ("segment_ids", 0), ("positions", 0), ("weights", 0)):
                    alone[key][-1] = np.concatenate((np.full(before, x, alone[key][-1].dtype), alone[key][-1]))
    longest = max(map(len, alone["tokens"]))
    longest += -longest % 8

    def filled(x):
        return np.pad(x, (0, longest - len(x))) if x.ndim == 1 else x

    apart = evaluate(state.params, {name: np.stack(list(map(filled, arrays))) for name, arrays in alone.items()})
    assert together["weight"] == batch["weights"].sum()
    for value, one in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(value, one, rtol=1e-5)


@pytest.mark.parametrize("accumulate", all_but([2], [1, 2]))
def test_encoders_and_media_count_as_memory(accumulate):
    """Arrays of a whole batch; activations of one slice of it, at least what the encoders' layers read."""
    config, media = config_of(accumulate), {"images": 3, "audio": 2}
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text, with_media = (memories(config, mesh.abstract_mesh, some)[0] for some in (None, media))
    assert with_media.pop("media") == 8 // 2 * (3 * 8 * 8 * 3 + 2 * 16 * 4) * 4
    more = {name: with_media[name] - text[name] for name in text}
    patches, frames = 3 * (8 // 4) ** 2, 2 * 16 // 2
    assert more.pop("activations") > 8 // accumulate // 2 * 2 * (patches + frames) * 16 * 4
    assert not any(more.values())  # parameters of the encoders count in any case
    check_memory(config, mesh, media=media)
    with pytest.raises(UserError, match=r"GiB for media \(up to 100000000 images and 2 windows of sound in a row\)"):
        check_memory(config, mesh, media={"images": 10**8, "audio": 2})
