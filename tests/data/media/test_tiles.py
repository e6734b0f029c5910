"""Tiles equal the pixel values of transformers' image processors."""

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from data.media.tiles import Tower, prepare, tower_of
from lm.errors import UserError
from tests.data.media.pictures import picture

SIZES = [(60, 100), (100, 60), (48, 48), (31, 200), (200, 31), (1, 7), (129, 128), (257, 300)]
TOLERANCE = 2e-6  # of values in about [−2.2, 2.7]


def expected(processor, image: np.ndarray, **options) -> tuple[np.ndarray, int, int]:
    """Return float32 [N, S, S, 3], rows and columns, from transformers."""
    found = processor(images=[image], return_tensors="np", input_data_format="channels_last", **options)
    pixels = np.asarray(found["pixel_values"])
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).transpose(0, 2, 3, 1)
    return pixels, *(int(np.ravel(found[key])[0]) if key in found else 0 for key in ("rows", "cols"))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize("edge, side, split", [(128, 32, True), (96, 48, True), (50, 64, True), (128, 32, False)])
def test_tiles_of_idefics3(kind, size, edge, side, split):
    processor = kind(size={"longest_edge": edge}, max_image_size={"longest_edge": side}, do_image_splitting=split)
    image = picture(*size)
    pixels, rows, columns = expected(processor, image, return_row_col_info=True)
    tiles = prepare(image, tower_of(processor.to_dict(), "x"))
    assert (tiles.rows, tiles.columns) == (rows, columns)
    assert tiles.pixels.dtype == np.float32 and tiles.pixels.shape == (rows * columns + 1, side, side, 3)
    np.testing.assert_allclose(tiles.pixels, pixels, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1200, 1600), (3000, 700), (4100, 4100)], ids=str)
def test_tiles_of_smolvlm_in_full_size(size):
    processor = SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    image = picture(*size)
    pixels, rows, columns = expected(processor, image, return_row_col_info=True)
    tiles = prepare(image, tower_of(processor.to_dict(), "x"))
    assert (tiles.rows, tiles.columns) == (rows, columns)
    np.testing.assert_allclose(tiles.pixels, pixels, atol=TOLERANCE)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "processor",
    [
        SiglipImageProcessorPil(size={"height": 40, "width": 40}),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}),
        CLIPImageProcessorPil(size={"shortest_edge": 33}, crop_size=33, resample=2),
    ],
    ids=["siglip", "clip", "clip odd"],
)
def test_one_tile_of_siglip_and_clip(processor, size):
    image = picture(*size)
    tiles = prepare(image, tower_of(processor.to_dict(), "x"))
    assert tiles[1:] == (0, 0)
    np.testing.assert_allclose(tiles.pixels, expected(processor, image)[0], atol=TOLERANCE)


def test_the_published_settings_of_models():
    """Keys of preprocessor_config.json as SmolVLM, LLaVA 1.5 and SigLIP publish them."""
    smol = {
        "image_processor_type": "Idefics3ImageProcessor",
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
    }
    assert tower_of(smol, "x") == Tower(512, "tiles", 2048, resample="lanczos")
    llava = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
    }
    assert tower_of(llava, "x")[:2] == (336, "crop") and tower_of(llava, "x").mean == (0.48145466, 0.4578275, 0.40821073)
    old = {"image_processor_type": "CLIPImageProcessor", "crop_size": 336, "size": 336}
    assert tower_of(old, "x") == tower_of(llava, "x")
    assert tower_of({"image_processor_type": "SiglipImageProcessorFast", "resample": 2}, "x") == Tower(224, resample="bilinear")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "none of CLIP"),
        ({"image_processor_type": "DeepseekVLImageProcessor"}, "none of CLIP"),
        ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 2, "width": 3}}, "not understood"),
        ({"image_processor_type": "SiglipImageProcessor", "size": "large"}, "not understood"),
        ({"image_processor_type": "SiglipImageProcessor", "size": -1}, "positive"),
        ({"image_processor_type": "SiglipImageProcessor", "size": 10**6}, "at most 4096"),
        ({"image_processor_type": "SiglipImageProcessor", "image_mean": [1, 2]}, "not understood"),
        ({"image_processor_type": "SiglipImageProcessor", "image_std": 0}, "positive"),
        ({"image_processor_type": "SiglipImageProcessor", "do_rescale": False}, "do_rescale=False"),
        ({"image_processor_type": "CLIPImageProcessor", "size": 256}, "size is not crop_size"),
    ],
)
def test_settings_that_cannot_be_followed(settings, words):
    with pytest.raises(UserError, match=f"^config: .*{words}"):
        tower_of(settings, "config")


def test_a_line_of_pixels_does_not_grow_into_a_large_image():
    line = picture(20_000, 1)
    with pytest.raises(UserError, match="too many times as long"):
        prepare(line, Tower(224, "crop"))
    assert prepare(line, Tower(32, "tiles", 128)).rows == 4
    with pytest.raises(UserError, match="lower longest_edge=2000"):
        prepare(picture(40, 40), Tower(8, "tiles", 2000))
