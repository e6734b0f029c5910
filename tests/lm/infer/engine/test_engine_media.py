"""Requests with images and sound get the tokens of forward passes with the same media."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import lm
from lm.config import Audio, ModelConfig, Vision
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.local import Layout, LocalEngine
from lm.infer.engine.media import AT_ONCE
from lm.infer.engine.request import Request, Sampling, tiles_of
from lm.infer.engine.room import Capacity
from lm.model.media import Media
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.infer import plain
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

pytestmark = pytest.mark.usefixtures("quick")
IMAGE, SOUND, COUNT = 90, 91, 10
VISION = Vision(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24, image_size=8, patch_size=2, shuffle=2, token_id=IMAGE)
AUDIO = Audio(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24, num_mels=4, num_frames=24, stack=4, token_id=SOUND)
BASE = ModelConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_positions=256, dtype="float32"
)


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(BASE, vision=VISION, audio=AUDIO)
    return nnx.merge(skeleton(config)[0], parameters(config, scale=4.0))


def asked() -> list[tuple[list[int], Media | None]]:
    """Prompts with none, one, many and the same images, and with sound, some with a common beginning."""
    rng = np.random.default_rng(0)

    def words(n):
        return rng.integers(0, IMAGE, n).tolist()

    def images(n):
        return rng.standard_normal((1, n, *VISION.shape)).astype(np.float32)

    picture, sound, begin = [IMAGE] * VISION.tokens, [SOUND] * AUDIO.tokens, words(6)
    one, other, many = images(1), images(1), images(AT_ONCE + 2)
    heard = rng.standard_normal((1, 2, *AUDIO.shape)).astype(np.float32)
    return [
        (words(9), None),
        ([*begin, *picture, *begin], Media(one)),
        ([*begin, *picture, *begin], Media(other)),
        ([*begin, *picture, *begin], Media(one)),
        ([*begin, *picture, 5, *picture, 7], Media(np.concatenate([one, one], 1))),
        ([*picture * (AT_ONCE + 2), 3], Media(many)),
        ([4, *sound, *sound], Media(audio_BNTM=heard)),
        ([*sound, 8, *picture, *sound, 9], Media(other, heard)),
    ]


def greedy(engine, prompts=None) -> list[list[int]]:
    prompts = prompts or asked()
    return engine.generate_all([Request(tuple(ids), COUNT, temperature=0, media=tiles_of(media)) for ids, media in prompts])


@pytest.fixture(scope="module")
def alone(model):
    prompts, media = zip(*asked(), strict=True)
    return plain.greedy(model, prompts, COUNT, media=media)[0]


WAYS = {"plain": {}, "tight": {"budget": 4, "rows": 2, "pages": 20, "drafts": 2}}


@pytest.mark.slow
@pytest.mark.parametrize("way", all_but(["tight"], WAYS))
def test_requests_together_get_what_each_gets_alone(model, alone, way):
    options = WAYS[way]
    assert alone[1] != alone[2] and alone[1] == alone[3]
    engine = Engine(model, None, Capacity(**{"rows": 4, "budget": 16, "pages": 200, "page": 4} | options))
    try:
        assert greedy(engine) == alone
        before = engine.stats()
        assert before.prefix_hits > 0
        if not options:  # the second time all blocks of a prompt are known but the last
            assert greedy(engine) == alone
            hits = engine.stats().prefix_hits - before.prefix_hits
            assert hits == sum((len(ids) - 1) // 4 * 4 for ids, _ in asked())
        assert engine.stats().finished == {"length": len(alone) * (1 if options else 2)}
    finally:
        engine.close()


EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", all_but([EIGHT], [EIGHT, {"data": 8}]))
def test_a_mesh_encodes_too(model, alone, sizes):
    mesh = make_mesh(sizes)
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        split = nnx.merge(graph, jax.device_put(params, shardings(skeleton(model.config)[1], mesh)))
        local = LocalEngine(None)
        tiles = [tiles_of(media) and (tiles_of(media), len(ids)) for ids, media in asked()]
        drawn = local.draw(split, [ids for ids, _ in asked()], Sampling(COUNT, temperature=0), Layout(media=tiles))
        local.close()
    assert drawn.tokens == alone


def test_newer_weights_encode_again(model):
    newer = nnx.merge(skeleton(model.config)[0], parameters(model.config, 1, scale=4.0))
    some = asked()[1:3]
    expected, _ = plain.greedy(newer, [prompt for prompt, _ in some], COUNT, media=[media for _, media in some])
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=200, page=4))
    try:
        assert greedy(engine, some) != expected
        engine.swap(newer)
        assert greedy(engine, some) == expected
    finally:
        engine.close()


def test_requests_that_do_not_fit(model):
    image = np.zeros((1, 1, *VISION.shape), np.float32)
    engine = Engine(model, None, Capacity(rows=1, budget=16, pages=20, page=4))
    try:
        for prompt, media, words in (
            ([1, 2], Media(image), "0 tokens 90 for the 4 vectors of model.vision"),
            ([IMAGE] * 5, Media(image), "5 tokens"),
            ([SOUND] * 6, None, "without media has 6 tokens 91"),
            ([IMAGE] * 4 + [SOUND], Media(image), "without media has 1 tokens 91, each the place of a vector of model.audio"),
            ([IMAGE] * 4, Media(image[:, :, :6]), "media of shape"),
        ):
            with pytest.raises(UserError, match=words):
                engine.generate(Request(tuple(prompt), 1, media=tiles_of(media)))
        for prompts in ([[IMAGE] * 4], [[1, 2], [3, SOUND]]):
            with pytest.raises(UserError, match="a prompt without media has"):
                lm.generate(model, None, prompts, max_new_tokens=1)
        assert len(engine.generate(Request((IMAGE,) * 5, 2, temperature=0, media=None))) == 2  # as any other token
        drawn = Request((IMAGE,) * 5, 2, temperature=0, media=tiles_of(Media(image)), media_end=4)
        assert engine.generate(drawn) == plain.greedy(model, [[IMAGE] * 5], 2, media=[Media(image)])[0][0]
    finally:
        engine.close()
    text = nnx.merge(skeleton(BASE)[0], parameters(BASE))
    engine = Engine(text, None, Capacity(rows=1, budget=16, pages=20, page=4))
    with pytest.raises(UserError, match="this model does not have"):
        engine.generate(Request((IMAGE,) * 4, 1, media=tiles_of(Media(image))))
    engine.close()
