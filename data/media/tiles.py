"""Prepare an image for a vision tower: resize, cut into tiles, rescale, normalise.

Letters: N tiles, H and W pixels; a tile has as many rows as columns, S.

    stretch  one tile: the image, resized to S × S (SigLIP; Zhai et al. 2023, arXiv 2303.15343)
    crop     one tile: the shorter edge resized to S, then the S × S in the middle (CLIP; Radford et al. 2021, arXiv 2103.00020;
             LLaVA 1.5)
    tiles    the longer edge resized to `longest_edge`, both edges stretched to multiples of S, cut into rows and columns of
             tiles; the last tile is the whole image (Idefics3, Laurençon et al. 2024, arXiv 2408.12637; SmolVLM)

The results equal those of the image processors in transformers that use Pillow. Those that use torchvision interpolate in other
steps and differ by a few units of 255.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data.media import library
from lm.errors import UserError
from lm.files.untrusted import short

FITS = ("stretch", "crop", "tiles")
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number, which published files hold
MAX_EDGE = 4096  # pixels of a resized image; Idefics3's bound
MAX_TILES = 256  # of an image, so under 1 GB for tiles of 512 pixels
HALF = (0.5, 0.5, 0.5)


class Tower(NamedTuple):
    """How a vision tower wants its images.

    size: S, pixels. fit: one of FITS. longest_edge: for `tiles`, pixels. split: for `tiles`, whether to cut at all; else one
    tile, the whole image. mean, std: of the values in [0, 1], by channel. resample: one of FILTERS.
    """

    size: int
    fit: str = "stretch"
    longest_edge: int = 0
    split: bool = True
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    resample: str = "bicubic"
    scale: float = 1 / 255


class Tiles(NamedTuple):
    """float32 [N, S, S, 3], normalised, row by row; and the grid of rows × columns, 0 × 0 if the image was not cut.

    With a grid, N is rows · columns + 1: the whole image comes last.
    """

    pixels: np.ndarray
    rows: int = 0
    columns: int = 0


def prepare(image: np.ndarray, tower: Tower) -> Tiles:
    """Return the tiles of an image, uint8 [H, W, 3].

    Raises: UserError if it would be cut into more than MAX_TILES, or is too narrow to be resized by its shorter edge.
    """
    height, width = image.shape[:2]
    S = tower.size
    if tower.fit == "stretch":
        return Tiles(_normalised(_resized(image, S, S, tower)[None], tower))
    if tower.fit == "crop":
        height, width = (int(S * height / width), S) if width <= height else (S, int(S * width / height))
        if height * width > MAX_EDGE**2:
            raise UserError(
                "one edge of the image is too many times as long as the other; cut it to a shape nearer to a square"
            )
        top, left = (height - S) // 2, (width - S) // 2
        # Cut before resizing would give other values at the edge of the cut.
        return Tiles(_normalised(_resized(image, height, width, tower)[None, top : top + S, left : left + S], tower))
    image = _resized(image, *_longest(height, width, tower.longest_edge), tower)
    if not tower.split:
        return Tiles(_normalised(_resized(image, S, S, tower)[None], tower))
    height, width = _multiples(*image.shape[:2], S)
    rows, columns = height // S, width // S
    if rows * columns > MAX_TILES:
        raise UserError(
            f"an image of {rows} × {columns} tiles of {S} pixels, and {MAX_TILES} are possible: lower longest_edge="
            f"{tower.longest_edge}"
        )
    image = _resized(image, height, width, tower)
    if rows * columns == 1:
        return Tiles(_normalised(image[None], tower))
    cut = image.reshape(rows, S, columns, S, 3).swapaxes(1, 2).reshape(rows * columns, S, S, 3)
    return Tiles(_normalised(np.concatenate([cut, _resized(image, S, S, tower)[None]]), tower), rows, columns)


def tower_of(settings: Mapping[str, Any], where: str) -> Tower:
    """Return the tower of a preprocessor_config.json: the image processor of SigLIP, CLIP, LLaVA 1.5, Idefics3 or SmolVLM.

    Keys that are left out have the defaults of transformers' class.
    Args: where: the file, for errors.
    Raises: UserError for another image processor, or settings that `prepare` cannot follow.
    """
    name = str(settings.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if name not in _DEFAULTS:
        known = ", ".join(sorted(_DEFAULTS))
        raise UserError(f"{where}: image_processor_type={short(name)} is none of {known}; use a model with one of these")
    given = {key: value for key, value in settings.items() if value is not None}
    values = _DEFAULTS[name] | given
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if values.get(key, True) is not True:
            raise UserError(f"{where}: {key}={short(values[key])}; only true is supported")
    try:
        size = values["size"]
        common = {
            "mean": _three(values["image_mean"]),
            "std": _three(values["image_std"]),
            "resample": FILTERS[values["resample"]],
            "scale": float(values.get("rescale_factor", 1 / 255)),
        }
        if "max_image_size" in values:
            tower = Tower(
                _side(values["max_image_size"]),
                "tiles",
                _edge(size, "longest_edge"),
                bool(values["do_image_splitting"]),
                **common,
            )
        elif values.get("do_center_crop"):
            tower = Tower(_side(values["crop_size"]), "crop", **common)
            if _edge(size, "shortest_edge") != tower.size:
                raise ValueError("size is not crop_size")
        else:
            tower = Tower(_side(size), "stretch", **common)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where}: settings of an image processor that are not understood ({error!r}); correct them") from None
    if not (0 < tower.size <= MAX_EDGE and (tower.fit != "tiles" or 0 < tower.longest_edge)) or min(tower.std) <= 0:
        raise UserError(f"{where}: sizes and image_std must be positive, and sizes at most {MAX_EDGE}; correct them")
    return tower


_IMAGENET = {"image_mean": HALF, "image_std": HALF}
_OPENAI = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_TILED = {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}, "do_image_splitting": True, "resample": 1}
_CROPPED = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "resample": 3} | _IMAGENET,
    "CLIPImageProcessor": _CROPPED | _OPENAI,
    "Idefics3ImageProcessor": _TILED | _IMAGENET,
    "SmolVLMImageProcessor": _TILED | _IMAGENET,
}


def _three(values: Any) -> tuple[float, float, float]:
    a, b, c = [values] * 3 if isinstance(values, int | float) else values
    return float(a), float(b), float(c)


def _edge(size: Any, key: str) -> int:
    return int(size[key] if isinstance(size, Mapping) else size)


def _side(size: Any) -> int:
    """Return the side of a square that is written as a number, by height and width, or by one edge."""
    values = set(size.values()) if isinstance(size, Mapping) else {size}
    (side,) = values
    return int(side)


def _longest(height: int, width: int, edge: int) -> tuple[int, int]:
    """Return (height, width) with the longer edge `edge`, at most MAX_EDGE, and about the same shape.

    The shorter edge is rounded down, then up to an even number, as Idefics3 does, also in which product is rounded.
    """
    ratio = width / height
    if width >= height:
        height, width = int(edge / ratio), edge
        height = max(height + height % 2, 1)
    else:
        height, width = edge, int(edge * ratio)
        width = max(width + width % 2, 1)
    ratio = width / height
    if width >= height and width > MAX_EDGE:
        height, width = max(int(MAX_EDGE / ratio), 1), MAX_EDGE
    elif height > width and height > MAX_EDGE:
        height, width = MAX_EDGE, max(int(MAX_EDGE * ratio), 1)
    return height, width


def _multiples(height: int, width: int, S: int) -> tuple[int, int]:
    """Return (height, width) in multiples of S: the longer edge is rounded up, the other follows it and is rounded up."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / S) * S
        height = math.ceil(int(width / ratio) / S) * S
    else:
        height = math.ceil(height / S) * S
        width = math.ceil(int(height * ratio) / S) * S
    return max(height, S), max(width, S)


def _resized(image: np.ndarray, height: int, width: int, tower: Tower) -> np.ndarray:
    """Return uint8 [height, width, 3]."""
    Image = library("PIL.Image", "resizing images")
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[tower.resample.upper()]))


def _normalised(pixels: np.ndarray, tower: Tower) -> np.ndarray:
    """Return (pixels · scale − mean) / std, float32, of uint8 [N, S, S, 3]."""
    table = (np.arange(256) * tower.scale).astype(np.float32)[:, None]
    table = (table - np.float32(tower.mean)) / np.float32(tower.std)
    return np.stack([table[pixels[..., channel], channel] for channel in range(3)], axis=-1)
