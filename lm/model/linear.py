"""The linear layer of attention, feed-forward and heads.

The config (lm/config/model.py) may store its weight as integers and add a low-rank adapter.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import PathParts
from jax import lax
from jax.typing import DTypeLike

from lm.config import ModelConfig
from lm.kernels.cpu.packed import Packed
from lm.kernels.ops import Weight, matmul, product, rounded_weights
from lm.kernels.quantize import Integers, dequantize, quantize
from lm.model.initializers import STD, gaussian, parameter
from lm.parallel.context import length_axis
from lm.parallel.mesh import reshard, spec


class Linear(nnx.Module):
    """y = einsum(equation, x, weight) + bias, in the compute dtype.

    With an adapter, y = c ⊙ (x·W + s·(x·A)·B) + bias, where s is alpha/rank (Hu et al. 2021) or alpha/√rank (Kalajdzievski
    2023), and c is 1 or DoRA's (`rescaling`). B starts at zero and c at 1: adapted or not, a model starts the same to the bit.

    name: what adapters and quantisation call it, such as "attention.query".
    equation: "btd,dhk->bthk"; the weight's letters that x shares are contracted. b: rows of a batch; r: images or windows.
    axes: the weight's logical axes. `std` is that of its normal initialisation at model.mup_base_dim.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        name: str,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        std: float = STD,
        bias: bool = False,
    ):
        self.dtype, self.name, self.equation, self.axes = config.compute_dtype, name, equation, axes
        self.precision = config.quantized_training
        x_letters, w_letters, y_letters = equation.replace("->", ",").split(",")
        by_letter = dict(zip(w_letters, axes, strict=True))
        self.inputs = sum(letter in x_letters for letter in w_letters)  # how many leading axes are contracted
        into, out_of = w_letters[: self.inputs], w_letters[self.inputs :]
        self.letters = (x_letters.removesuffix(into), into, out_of)  # of rows, inputs and outputs
        self.outputs = tuple(shape[self.inputs :])
        assert x_letters == self.letters[0] + into and y_letters == self.letters[0] + out_of
        # An activation's model dimension is whole on every device; a weight's is split over devices.
        activation = {
            "b": "batch",
            "r": "rows",
            "t": "length",
            **{letter: None if a == "embed" else a for letter, a in by_letter.items()},
        }
        self.out = tuple(activation.get(letter) for letter in y_letters)
        key = rngs.params()
        value = gaussian(key, shape, hidden_std(config, std, math.prod(shape[: self.inputs])))
        self.weight: nnx.Variable | QuantizedWeight = declared(config, name, value, axes, tuple(range(self.inputs)))
        # Like activations, a vector of the residual stream is whole on every device.
        self.vector_axes = tuple("replicated" if axis == "embed" else axis for axis in axes[self.inputs :])
        if bias:
            self.bias = parameter(jnp.zeros(shape[self.inputs :], jnp.float32), self.vector_axes, "vector")
        if config.adapter.rank and re.fullmatch(config.adapter.targets, name):
            self._adapt(config, key, shape)

    def _adapt(self, config: ModelConfig, key: jax.Array, shape: tuple[int, ...]) -> None:
        """Add the adapter. A is uniform in ±1/√inputs, as in PEFT; its random key does not change those of the weights."""
        adapter, inputs = config.adapter, shape[: self.inputs]
        self.adapter_scale = adapter.alpha / (adapter.rank**0.5 if adapter.rank_stabilized else adapter.rank)
        bound = math.prod(inputs) ** -0.5
        a = jax.random.uniform(jax.random.fold_in(key, 1), (*inputs, adapter.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((adapter.rank, *shape[self.inputs :]), jnp.float32)
        # In μP, A maps the width to few and B few to the width: their rates scale as a hidden matrix's and an embedding's.
        into = tuple(range(self.inputs))
        self.lora_a = parameter(a, (*self.axes[: self.inputs], "replicated"), "hidden", nnx.LoRAParam, into)
        self.lora_b = parameter(b, ("replicated", *self.axes[self.inputs :]), "embedding", nnx.LoRAParam, (0,))
        if adapter.dora:
            self.magnitude = parameter(jnp.zeros(shape[self.inputs :], jnp.float32), self.vector_axes, "vector", nnx.LoRAParam)

    def __call__(self, x: jax.Array, axis: str = "length") -> jax.Array:
        """Return y. axis: the logical axis of T in y [B, T, …], "length" or "sequence" (lm/parallel/context.py)."""
        out = tuple([axis if name == "length" else name for name in self.out])
        # An engine merges adapters; its values take the same product.
        w = self.full() if hasattr(self, "lora_a") and rounded_weights() else stored(self.weight)
        return self.completed(x, matmul(self.equation, x, w, dtype=self.dtype, out=out, precision=self.precision), out)

    def completed(self, x: jax.Array, y: jax.Array, out: tuple[str | None, ...]) -> jax.Array:
        """Return the product y of x with the adapter's part and the bias."""
        if hasattr(self, "lora_a") and not rounded_weights():
            y = self._adapted(x, y, out)
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y

    def _adapted(self, x: jax.Array, y: jax.Array, out: tuple[str | None, ...]) -> jax.Array:
        rows, inputs, outputs = self.letters
        few_out = (out[0], "sequence" if "sequence" in (length_axis(x), out[1]) else out[1], None)
        few = matmul(f"{rows}{inputs},{inputs}z->{rows}z", x, self.lora_a[...], dtype=self.dtype, out=few_out)
        if (mask_BR := _MASK.get()) is not None:
            few = few * mask_BR[:, None].astype(few.dtype)
        low = matmul(f"{rows}z,z{outputs}->{rows}{outputs}", few, self.lora_b[...], dtype=self.dtype, out=out)
        y32 = y.astype(jnp.float32) + self.adapter_scale * low.astype(jnp.float32)
        return (y32 + self.rescaling() * y32 if hasattr(self, "magnitude") else y32).astype(y.dtype)

    def full(self) -> jax.Array:
        """Return the effective matrix c ⊙ (W + s·A·B), float32; without an adapter W as `whole` returns it."""
        w = whole(self.weight)
        if not hasattr(self, "lora_a"):
            return w
        _, inputs, outputs = self.letters
        low = product(f"{inputs}z,z{outputs}->{inputs}{outputs}", self.lora_a[...], self.lora_b[...], spec(*self.axes))
        w = w + self.adapter_scale * low
        return w + self.rescaling(self.axes[self.inputs :]) * w if hasattr(self, "magnitude") else w

    def rescaling(self, axes: tuple[str, ...] | None = None) -> jax.Array:
        """Return c − 1 of each output for DoRA's c = m / ‖W + s·A·B‖, float32, sharded by `axes` (default: as an activation).

        The magnitude m is trained (Liu et al. 2024, eq. 5); the norm counts as a constant for the gradient (ibid. §4.3).
        `magnitude` holds m − ‖W‖ and starts at zero. With e = (2s·⟨W, A·B⟩ + s²·‖A·B‖²) / ‖W‖², from Aᵀ·W and Aᵀ·A (A·B is
        never built), c = (1 + magnitude/‖W‖) · (1 − h) where 1 − h = 1/√(1+e), so h = e / (1 + e + √(1+e)). Thus c − 1 is
        exactly zero at the start.
        """
        _, inputs, outputs = self.letters
        w, norm = whole(self.weight).astype(jnp.float32), self.norm()
        a, b = lax.stop_gradient((self.lora_a[...], self.lora_b[...]))
        out = spec(None, *self.axes[self.inputs :])
        from_w = product(f"{inputs}z,{inputs}{outputs}->z{outputs}", a, w, out)
        from_a = product(f"zy,y{outputs}->z{outputs}", product(f"{inputs}z,{inputs}y->zy", a, a, spec(None, None)), b, out)
        grown = jnp.sum(b * (2 * self.adapter_scale * from_w + self.adapter_scale**2 * from_a), axis=0)
        e = jnp.maximum(grown / (norm * norm), -1 + 1e-6)
        axes = self.vector_axes if axes is None else axes
        h = reshard(e / (1 + e + jnp.sqrt(1 + e)), *axes)
        return reshard(self.magnitude[...], *axes) / reshard(norm, *axes) * (1 - h) - h

    def norm(self) -> jax.Array:
        """Return ‖W‖ of each output over its inputs, float32, at least 1e-18."""
        w = whole(self.weight).astype(jnp.float32)
        return jnp.maximum(jnp.sqrt(jnp.sum(w * w, axis=range(self.inputs))), 1e-18)


def together(x: jax.Array, *linears: Linear) -> list[jax.Array]:
    """Return linear(x) for each, of one product, if the engine has joined their weights in the first; else nothing."""
    w, first, found = stored(linears[0].weight), 0, list[jax.Array]()
    if not isinstance(w, Packed) or w.outputs == math.prod(linears[0].outputs):
        return found
    y = matmul(linears[0].equation, x, w, dtype=linears[0].dtype, out=linears[0].out)
    for linear in linears:
        count = math.prod(linear.outputs)
        part = y[..., first : first + count].reshape(*y.shape[:-1], *linear.outputs)
        found.append(linear.completed(x, part, linear.out))
        first += count
    return found


_MASK: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("mask", default=None)


@contextlib.contextmanager
def adapters_of_rows(mask_BR: jax.Array) -> Iterator[None]:
    """While a model is traced in this context, row b uses only the numbers of its adapter's R that mask_BR[b] keeps.

    So the rows of a batch can have adapters of their own, which lie side by side in A and B (lm/infer/engine/adapters.py).
    """
    token = _MASK.set(mask_BR)
    try:
        yield
    finally:
        _MASK.reset(token)


class Quantized(nnx.Variable):
    """Integers that stand for a weight, or their scales. Never trained."""


class QuantizedWeight(nnx.Module):
    """A weight as integers · scale, with a scale for each output or for each group of its inputs (lm/kernels/quantize.py)."""

    def __init__(self, value: jax.Array, axes: tuple[str, ...], inputs: tuple[int, ...], bits: int, group: int):
        self.inputs, self.bits, self.group = inputs, bits, group
        integers, scale = quantize(value, inputs, bits=bits, group=group)
        self.integers = parameter(integers, axes, "hidden", Quantized)
        # There are few groups, not always a multiple of the devices that an input axis is split over.
        scale_axes = tuple("replicated" if i in inputs else axis for i, axis in enumerate(axes))
        self.scale = parameter(scale, scale_axes, "vector", Quantized)


def declared(
    config: ModelConfig, name: str, value: jax.Array, axes: tuple[str, ...], inputs: tuple[int, ...]
) -> nnx.Variable | QuantizedWeight:
    """Return a weight, quantized if the config says so. name: its name in quantization.targets. inputs: its contracted axes."""
    how = config.quantization
    if how.bits and re.fullmatch(how.targets, name):
        return QuantizedWeight(value, axes, inputs, how.bits, how.group)
    return parameter(value, axes, "hidden", inputs=inputs)


def stored(weight: nnx.Variable | QuantizedWeight) -> Weight:
    """Return a weight as `matmul` takes it: an array, integers with scales, or packed for a CPU's compiled products."""
    if isinstance(weight, QuantizedWeight):
        return Integers(weight.integers[...], weight.scale[...])
    return weight.get_value()


def whole(weight: nnx.Variable | QuantizedWeight, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Return a weight of `declared` as an array of floats: `dtype` if it is quantized, else its own."""
    if isinstance(weight, QuantizedWeight):
        return dequantize(weight.integers[...], weight.scale[...], weight.inputs[-1], dtype)
    return weight[...]


def hidden_std(config: ModelConfig, std: float, inputs: int) -> float:
    """Return the initial std of a hidden matrix: 1/√inputs, or 0 if `std` is 0, with model.init=fan_in; else `std`.

    In μP the variance falls with the inputs (Yang et al. 2022, table 8), as 1/√inputs does.
    """
    if config.init == "fan_in":
        return inputs**-0.5 if std else 0.0
    return std if not config.mup_base_dim else std * (config.mup_base_dim / config.embed_dim) ** 0.5


def scaled_output(config: ModelConfig, x: jax.Array, scale: float = 1.0) -> jax.Array:
    """Return the input of an output layer (head, router), in x's dtype: x·scale, in μP also · base/width (Yang et al. 2022,
    table 8).

    The paper scales the product; x is smaller than the weight.
    """
    if config.mup_base_dim:
        scale *= config.mup_base_dim / config.embed_dim
    return x if scale == 1 else (x.astype(jnp.float32) * scale).astype(x.dtype)


def residual_std(config: ModelConfig) -> float:
    """Return the initial std of a matrix that writes into the residual stream of L layers: STD/√(2·L) (GPT-2), fan_in: 0."""
    return 0.0 if config.init == "fan_in" else STD / (2 * config.num_layers) ** 0.5


class Score(nnx.Param):
    """A head of one output (model.score_head). It is trained together with adapters, because no base contains it."""


def trainable(config: ModelConfig) -> nnx.filterlib.Filter:
    """Return the filter of trained variables: with adapters these, projectors and a score head, else all that is not frozen.

    An indexer has no gradient, and the optimizer's decay would change it.
    """
    kinds: nnx.filterlib.Filter = (nnx.LoRAParam, Score, is_projector) if config.adapter.rank else (nnx.Param,)
    if config.mla.index_topk:
        kinds = nnx.All(kinds, lambda path, variable: "indexer" not in path)
    if not config.frozen:
        return kinds
    return nnx.All(kinds, lambda path, variable: not re.fullmatch(config.frozen, ".".join(map(str, path))))


def is_projector(path: PathParts, variable: object) -> bool:
    """Return whether a variable is a weight of an encoder's projector (lm/model/encoder.py), which has no adapter."""
    return path[1:2] == ("projector",) and isinstance(variable, nnx.Param)


def cast_matrices(config: ModelConfig, params: nnx.State) -> nnx.State:
    """Return the parameters with those matrices in the compute dtype that every use casts: of layers, embeddings and head.

    Routers, norms and quantized weights keep their dtypes. With adapters all do, because they compute with float32 weights.
    """

    def cast(path: PathParts, variable: nnx.Variable) -> nnx.Variable:
        used = variable.get_metadata().get("role") in ("hidden", "embedding") or path == ("head",)
        if type(variable) is not nnx.Param or not used:
            return variable
        return variable.replace(variable.get_value().astype(config.compute_dtype))

    return params if config.adapter.rank else nnx.map_state(cast, params)
