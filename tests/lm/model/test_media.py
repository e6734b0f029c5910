"""Images and sound in the decoder's sequence: each vector takes its token's place, and no other segment sees it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import Audio, ModelConfig, Vision
from lm.errors import UserError
from lm.model.inputs import Inputs
from lm.model.media import Media
from lm.model.transformer import skeleton
from lm.model.vision import patches_of, shuffled
from tests.lm.examples import parameters

IMAGE, SOUND = 40, 41
SIZES = dict(vocab_size=42, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32")
VISION = dict(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=24, image_size=12, patch_size=3, shuffle=2, token_id=IMAGE)
AUDIO = dict(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=24, num_mels=4, num_frames=12, stack=2, token_id=SOUND)
CONFIG = ModelConfig(**SIZES, vision=VISION, audio=AUDIO)
PER_IMAGE, PER_WINDOW = CONFIG.vision.tokens, CONFIG.audio.tokens


@functools.cache
def weights():
    """Those of the decoder four times as large; of encoders as they are, because larger ones would amplify rounding errors."""
    params = jax.tree.map(lambda x: x, parameters(CONFIG, scale=4.0))
    for name in ("vision", "audio"):
        params[name] = parameters(CONFIG)[name]
    return params


@functools.cache
def forward():
    graph = skeleton(CONFIG)[0]
    run = jax.jit(lambda params, *args: nnx.merge(graph, params)(Inputs(*args[:3], media=Media(*args[3:]))))
    return functools.partial(run, weights())


def example(seed: int, images: int, windows: int):
    """Tokens of one text with that many images and windows of sound, and these."""
    rng = np.random.default_rng(seed)
    pieces = [[IMAGE] * PER_IMAGE] * images + [[SOUND] * PER_WINDOW] * windows
    rng.shuffle(pieces)
    tokens = rng.integers(0, 40, 2).tolist()
    for piece in pieces:
        tokens += [*piece, *rng.integers(0, 40, rng.integers(0, 3))]
    tokens += rng.integers(0, 40, 2).tolist()
    return np.array(tokens), rng.standard_normal((images, 12, 12, 3)), rng.standard_normal((windows, 12, 4))


def rows_of(rows, T: int, N: int):
    """The arguments of `forward` for rows of packed examples."""
    tokens, segments, positions = np.zeros((3, len(rows), T), np.int32)
    images, windows = np.zeros((len(rows), N, 12, 12, 3), np.float32), np.zeros((len(rows), N, 12, 4), np.float32)
    for r, row in enumerate(rows):
        start = 0
        for segment, (ids, _, _) in enumerate(row, start=1):
            place = slice(start, start + len(ids))
            tokens[r, place], segments[r, place], positions[r, place] = ids, segment, np.arange(len(ids))
            start = place.stop
        for array, part in ((images, 1), (windows, 2)):
            all_of_it = np.concatenate([one[part] for one in row])
            array[r, : len(all_of_it)] = all_of_it
    return tokens, segments, positions, images, windows


EXAMPLES = [example(0, 2, 1), example(1, 0, 0), example(2, 1, 2), example(3, 1, 0)]
PACKED = [EXAMPLES, EXAMPLES[::-1]] * 2  # as many rows as examples, so that one program serves all


def test_packed_examples_have_the_logits_they_have_alone():
    packed = rows_of(PACKED, T=72, N=4)
    together = np.asarray(forward()(*packed))
    apart = np.asarray(forward()(*rows_of([[one] for one in EXAMPLES], T=72, N=4)))
    assert np.abs(together).max() > 1
    start = 0
    for i, (ids, _, _) in enumerate(EXAMPLES):
        np.testing.assert_allclose(together[0, start : start + len(ids)], apart[i, : len(ids)], atol=1e-5, rtol=1e-5)
        start += len(ids)


def test_another_image_changes_its_own_segment_from_its_place_on():
    tokens, segments, positions, images, windows = rows_of(PACKED, T=72, N=4)
    before = np.asarray(forward()(tokens, segments, positions, images, windows))
    third = np.flatnonzero(tokens[0] == IMAGE)[2 * PER_IMAGE]  # the image of the third example
    images[0, 2], kept = images[0, 2] + 1, images[0, 2].copy()
    differs = (np.asarray(forward()(tokens, segments, positions, images, windows)) != before).any(axis=2)[0]
    own = segments[0] == 3
    assert differs[own & (np.arange(72) >= third)].all() and not differs[own & (np.arange(72) < third)].any()
    assert not differs[~own].any()
    images[0, 2] = kept
    images[0, 3], windows[0, 3] = 7, 7  # the fourth image is that of the last example; no token has the fourth window
    differs = (np.asarray(forward()(tokens, segments, positions, images, windows)) != before).any(axis=2)[0]
    assert set(segments[0][differs]) == {4}


def test_vectors_are_the_embeddings_of_their_tokens():
    """The slow twin: the model without encoders, fed with the difference to the tokens' own embeddings."""
    tokens, segments, positions, images, windows = rows_of(PACKED, T=72, N=4)
    params, graph = weights(), skeleton(CONFIG)[0]

    @jax.jit
    def of_encoders(params):
        model = nnx.merge(graph, params)
        both = (IMAGE, model.vision, images), (SOUND, model.audio, windows)
        return {token: jnp.stack([encoder(row).reshape(-1, 32) for row in rows]) for token, encoder, rows in both}

    @jax.jit
    def fed(params, difference):
        model = nnx.merge(graph, params)
        return model.logits(model.hidden(Inputs(tokens, segments, positions, noise_BTD=difference)).x_BTD)

    vectors = {token: np.asarray(found) for token, found in of_encoders(params).items()}
    assert vectors[IMAGE].shape == (4, 4 * PER_IMAGE, 32) and vectors[SOUND].shape == (4, 4 * PER_WINDOW, 32)
    table = np.asarray(params["embedding"].get_value())
    difference = np.zeros((4, 72, 32), np.float32)
    for row in range(4):
        for token, found in vectors.items():
            for k, place in enumerate(np.flatnonzero(tokens[row] == token)):
                difference[row, place] = found[row, k] - table[token]
    logits = forward()(tokens, segments, positions, images, windows)
    np.testing.assert_allclose(fed(params, difference), logits, atol=1e-4)


def test_text_alone_is_that_of_the_model_without_encoders():
    text = dataclasses.replace(CONFIG, vision=Vision(), audio=Audio())
    ours, plain = parameters(CONFIG, 3), parameters(text, 3)
    for name in plain:
        for one, other in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(plain[name]), strict=True):
            np.testing.assert_array_equal(one, other)
    assert set(ours) - set(plain) == {"vision", "audio"}
    tokens, seeing, blind = np.arange(40)[None], skeleton(CONFIG)[0], skeleton(text)[0]
    logits = [jax.jit(lambda model: model(tokens))(nnx.merge(*pair)) for pair in ((seeing, ours), (blind, plain))]
    np.testing.assert_array_equal(*logits)
    with pytest.raises(UserError, match=r"images of shape \(8, 8, 3\): the model's encoder takes \(12, 12, 3\)"):
        nnx.merge(seeing, ours)(Inputs(tokens, media=Media(images_BNHWC=jnp.zeros((1, 1, 8, 8, 3)))))
    with pytest.raises(UserError, match="images for a model without an encoder of images"):
        nnx.merge(blind, plain)(Inputs(tokens, media=Media(images_BNHWC=jnp.zeros((1, 1, 12, 12, 3)))))


def test_patches_and_squares_of_them():
    image = np.arange(2 * 7 * 7 * 3).reshape(2, 7, 7, 3)
    patches = patches_of(jnp.asarray(image), 3)
    for n, (row, column) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        np.testing.assert_array_equal(patches[:, n], image[:, row : row + 3, column : column + 3])
    x = np.arange(36 * 2).reshape(1, 36, 2)
    joined = shuffled(jnp.asarray(x), 6, 3)
    assert joined.shape == (1, 4, 18)
    square = [6 * row + column for row in range(3) for column in range(3, 6)]
    np.testing.assert_array_equal(joined[0, 1], x[0, square].reshape(-1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision": {**VISION, "num_heads": 3}}, "model.vision.num_heads=3 does not divide model.vision.embed_dim=16"),
        ({"vision": {**VISION, "token_id": 42}}, "model.vision.token_id=42 must be the id of a token .* in 0…41"),
        ({"vision": {**VISION, "token_id": SOUND}}, "model.audio.token_id=41 must not be model.vision.token_id"),
        ({"vision": {**VISION, "shuffle": 3}}, "model.vision.shuffle=3 does not divide the 4 patches"),
        ({"vision": {**VISION, "patch_size": 13}}, "model.vision.patch_size=13 is more than model.vision.image_size=12"),
        ({"vision": {**VISION, "patch_size": 0}}, "model.vision.patch_size=0 must be at least 1"),
        ({"vision": {**VISION, "feature_layer": -3}}, "model.vision.feature_layer=-3 must be in -2…0"),
        ({"vision": {**VISION, "feature_layer": 1}}, "model.vision.feature_layer=1 must be in -2…0"),
        ({"vision": {**VISION, "activation": "swish"}}, "model.vision.activation='swish' is none of gelu, "),
        ({"vision": {**VISION, "projector": "resampler"}}, "model.vision.projector='resampler' is none of linear, mlp"),
        ({"vision": {**VISION, "norm_eps": 0.0}}, "model.vision.norm_eps=0.0 must be above 0"),
        ({"audio": {**AUDIO, "num_frames": 14}}, "model.audio.num_frames=14 must be a multiple of 2 × model.audio.stack = 4"),
        ({"audio": {**AUDIO, "num_layers": -1}}, "model.audio.num_layers=-1 must be at least 1"),
        ({"mtp_depth": 1}, "model.mtp_depth=1 does not go with model.vision: set it to 0"),
        ({"mup_base_dim": 16}, "model.mup_base_dim=16 does not go with model.vision: set it to 0"),
    ],
)
def test_encoders_that_cannot_be_built(change, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(CONFIG, **change)
