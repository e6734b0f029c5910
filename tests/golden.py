"""What live peers computed, kept in small files beside the tests, so that `make test` need not run the peers.

`make test-slow` computes it again and compares; with GOLDEN_RENEW=1 it writes it into the file first.
"""

import os
from pathlib import Path

import numpy as np


def stored(file: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays that a file (.npz) holds under a name."""
    with np.load(file) as arrays:
        return {key.removeprefix(f"{name}/"): arrays[key] for key in arrays.files if key.startswith(f"{name}/")}


def check(file: Path, name: str, computed: dict[str, np.ndarray], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compare what a peer has computed with what the file holds."""
    if os.environ.get("GOLDEN_RENEW"):
        kept = dict(np.load(file)) if file.exists() else {}
        kept = {key: x for key, x in kept.items() if not key.startswith(f"{name}/")}
        np.savez_compressed(file, **kept, **{f"{name}/{key}": x for key, x in computed.items()})
    held = stored(file, name)
    assert held.keys() == computed.keys()
    for key, x in computed.items():
        np.testing.assert_allclose(held[key], x, rtol=rtol, atol=atol, err_msg=f"{file}: {name}/{key}")
