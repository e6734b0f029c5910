"""Images made on the spot, and files of them."""

import io

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [H, W, 3]: smooth waves with noise, so that every pixel matters to interpolation."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (3 + c) + c) + np.cos(y / (5 - c)) for c in range(3)], axis=-1)
    return np.clip(128 + 50 * waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
