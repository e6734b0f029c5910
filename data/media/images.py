"""Decode an image file of a stranger to uint8 [H, W, 3], with bounded memory and time.

A file may be of any kind: a bomb of few bytes and many pixels, truncated, a film, in sixteen bits. Each one gives an image or
one clear line. Bounds: a file of MAX_BYTES, MAX_PIXELS pixels, MAX_SIDE pixels on a side, and MAX_SCANS passes over a
progressive JPEG. Together they allow about 0.6 GB of memory and ten seconds.
"""

import io
import warnings

import numpy as np

from data.media import library, reason
from lm.errors import UserError

MAX_BYTES = 32 << 20  # of a file
MAX_PIXELS = 40_000_000  # a camera's image has 12 to 24 million
MAX_SIDE = 20_000  # pixels
MAX_SCANS = 100  # of a progressive JPEG; a pass over the largest image may have 50 bytes, encoders write about 10 passes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
CONVERT = "convert it to PNG or JPEG"


def decode(data: bytes, where: str) -> np.ndarray:
    """Return an image as uint8 [H, W, 3], RGB.

    It is rotated as its EXIF data says. Transparent pixels become white. Sixteen bits become the upper eight. CMYK and palettes
    become RGB. Of a JPEG with several pictures (MPO), as some cameras write it, the first one is taken.

    Args: data: the file. where: its name, for errors.
    Raises: UserError for a file that is larger than the bounds above, of no format in FORMATS, damaged, or animated.
    """
    Image, ImageOps = (library(f"PIL.{name}", "reading images") for name in ("Image", "ImageOps"))
    if len(data) > MAX_BYTES:
        raise UserError(f"{where}: {len(data):,} bytes, and an image may have {MAX_BYTES:,}; make it smaller")
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise UserError(f"{where}: a JPEG of {scans:,} scans, and at most {MAX_SCANS} are read; {CONVERT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large and of odd files; the limits here are lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, where)
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise UserError(f"{where}: an animated {image.format}, which has several images; give one of them")
                image.load()
                _check_size(image.size, where)
                ImageOps.exif_transpose(image, in_place=True)
                return np.array(_rgb(image))
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{where}: {error}; an image may have {MAX_PIXELS:,} pixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{where}: no image of the formats {', '.join(FORMATS)}; {CONVERT}") from None
    except Exception as error:  # Pillow's readers raise nearly everything for damaged files
        raise UserError(f"{where}: a damaged image ({reason(error)}); replace it or leave it out") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """Return uint8 [H, W, 3] as the bytes of a PNG file."""
    file = io.BytesIO()
    library("PIL.Image", "writing images").fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if min(size) < 1:
        raise UserError(f"{where}: an image of {width} × {height} pixels; replace it or leave it out")
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise UserError(
            f"{where}: an image of {width:,} × {height:,} pixels, and it may have {MAX_PIXELS:,} with at most {MAX_SIDE:,} "
            "on a side; make it smaller"
        )


def _rgb(image):
    """Return an image in mode RGB, with transparent pixels on white, as transformers does."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":  # convert() would cut at 255
        return Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    return image.convert("RGB")
