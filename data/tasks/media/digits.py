"""Scanned handwritten digits: "Which digit is this?"

The 1,797 images of 8 × 8 pixels come with scikit-learn. They are the test set of "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak 1998, UCI).
"""

import base64
import random
from collections.abc import Iterator

import numpy as np

from data.media import library
from data.media.images import encode_png
from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

QUESTIONS = ("Which digit is this?", "What digit does the image show?", "Read the digit.")


def digits(split: str, seed: int, size: int = 32, valid: int = 500) -> Iterator[dict]:
    """Yield records such as "Which digit is this?" -> "7", with one image; `rejected` is another digit.

    One scan in ten is held out, whatever the seed. size: pixels of a side, a multiple of 8; each pixel of a scan is a square.
    Raises: UserError without scikit-learn or Pillow.
    """
    if not 8 <= size <= 1024 or size % 8:
        raise UserError(f"digits: size={size} must be a multiple of 8 in 8…1024")
    found = library("sklearn.datasets", "digits: reading the scans").load_digits()
    scans, labels = np.round(255 - found.images * (255 / 16)).astype(np.uint8), found.target.astype(int).tolist()

    def draw(rng: random.Random) -> tuple[bool, dict]:
        number = rng.randrange(len(scans))
        if (out := held_out(f"scan {number}")) != (split == "valid"):
            return out, {}
        pixels = np.kron(scans[number], np.ones((size // 8, size // 8), np.uint8))
        image = base64.b64encode(encode_png(np.repeat(pixels[..., None], 3, axis=-1))).decode()
        prompt, other = rng.choice(QUESTIONS), rng.choice([digit for digit in range(10) if digit != labels[number]])
        return out, exercise("digits", prompt, str(labels[number]), str(other), images=[f"data:image/png;base64,{image}"])

    return records(draw, split, seed, valid)
