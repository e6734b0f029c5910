"""The error for a model whose outputs are NaN or infinite: no token can be sampled and no score computed from them."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.errors import UserError
from lm.model.transformer import Transformer
from lm.runs.checkpoint import named, plain


def error(model: Transformer, what: str, cause: str = "") -> UserError:
    """Return the error to raise. what: such as "the logits of prompt 3". cause: the likely one if all parameters are finite.

    On several hosts every process calls this, because it counts the non-finite values of sharded parameters.
    """
    found = parameters(nnx.split(model)[1])
    if found:
        name, (count, size) = next(iter(found.items()))
        others = f", as do {len(found) - 1} other parameters" if len(found) > 1 else ""
        why = f"{name} holds NaN or infinity in {count} of {size} values{others}: "
        why += "take an earlier checkpoint, or the weights anew"
    else:
        dtype = model.config.dtype
        why = f"all parameters are finite, so a value overflowed {dtype}: " + (
            "check the scale of the weights" if dtype == "float32" else "try dtype float32, and check the scale of the weights"
        )
        why += f"; {cause}" if cause else ""
    return UserError(f"{what} are NaN or infinite; {why}")


def of_prompt(model: Transformer, number: int, before: int, temperature: float) -> UserError:
    """Return the error for the logits after prompt `number` and `before` sampled tokens."""
    after = f" after {before} new token{'s' if before > 1 else ''}" if before else ""
    cause = f"or temperature={temperature} is too small: 0 is greedy" if 0 < temperature < 1e-3 else ""
    return error(model, f"generate: the logits of prompt {number} (counted from 0){after}", cause)


def parameters(params: nnx.State) -> dict[str, tuple[int, int]]:
    """Return {dotted name: (values that are not finite, all values)} of the parameters that hold such values."""
    arrays = {name: x for name, x in named(plain(params)).items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    counts = {name: int(count) for name, count in _counts(arrays).items()}
    return {name: (count, arrays[name].size) for name, count in counts.items() if count}


@jax.jit
def _counts(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.sum(~jnp.isfinite(x)) for name, x in arrays.items()}
