"""What a request may ask for."""

from collections.abc import Collection

import numpy as np
from jax.sharding import Mesh

from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer.engine.draw import TOP
from lm.infer.engine.request import Request
from lm.infer.engine.tiles import check_tiles


def check(r: Request, config: ModelConfig, positions: int, adapters: Collection[str]) -> None:
    """Raise UserError if the request cannot be met. positions: most tokens of a sequence."""
    vocab = config.vocab_size
    if not r.prompt or min(r.prompt) < 0 or max(r.prompt) >= vocab:
        raise UserError(f"a prompt must not be empty, and its ids must be in 0…{vocab - 1}")
    if r.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={r.max_new_tokens} must be at least 1")
    if len(r.prompt) + r.max_new_tokens > positions:
        raise UserError(
            f"prompt ({len(r.prompt)} tokens) and max_new_tokens ({r.max_new_tokens}) exceed the {positions} tokens "
            "that a sequence may have here"
        )
    if r.adapter and r.adapter not in adapters:
        raise UserError(f"no adapter {r.adapter!r} is loaded")
    if r.media is not None:
        check_tiles(r.prompt, r.media, config)
    limits = {
        "temperature": 0 <= r.temperature < np.inf,
        "top_p": 0 < r.top_p <= 1,
        "top_k": 0 <= r.top_k < 2**31,
        "min_p": 0 <= r.min_p <= 1,
        "presence_penalty": abs(r.presence_penalty) < np.inf,
        "frequency_penalty": abs(r.frequency_penalty) < np.inf,
        "repetition_penalty": 0 < r.repetition_penalty < np.inf,
        "logprobs": -1 <= r.logprobs <= TOP,
        "prompt_logprobs": -1 <= r.prompt_logprobs <= TOP,
        "logit_bias": all(0 <= id < vocab and _is_finite(bias) for id, bias in r.logit_bias.items()),
        "stop_ids": all(0 <= id < vocab for id in r.stop_ids),
    }
    for name, holds in limits.items():
        if not holds:
            raise UserError(f"{name}={getattr(r, name)} is out of range")


def _is_finite(x: object) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and bool(-np.inf < x < np.inf)


def check_mesh(mesh: Mesh | None, packed: str) -> None:
    """Raise UserError for a mesh that an engine cannot use, or packed weights on several devices. mesh: None for one device."""
    if mesh is not None and any(size > 1 for axis, size in mesh.shape.items() if axis != "tensor"):
        raise UserError("an engine splits a model over the tensor axis of a mesh only: start one for each copy of it")
    if mesh is not None and mesh.size > 1 and packed:
        raise UserError(f"packed={packed} is for one device: leave it empty on a mesh")
