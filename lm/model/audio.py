"""An encoder of log-mel spectrograms whose states become tokens of the decoder.

Axes: R windows of sound, each on one device; T spectrogram frames, M mel bands, P = T/2 encoder frames, D size of a vector.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lm.config import ModelConfig
from lm.model.encoder import ACTIVATIONS, Projector, encoder_layers, fan_in_std, in_dtype, plain
from lm.model.execution import through_encoder
from lm.model.initializers import parameter
from lm.model.linear import Linear
from lm.model.norms import LayerNorm
from lm.parallel.mesh import reshard, spec

WIDTH = 3  # frames that a convolution sees


class AudioTower(nnx.Module):
    """projector(stack(encoder(spectrograms))), by `config.audio` (lm/config/towers.py)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        audio, D = config.audio, config.audio.embed_dim
        self.config = config

        def convolution(name: str, inputs: int) -> Linear:
            shape, axes = (WIDTH, inputs, D), ("replicated", "replicated", "embed")
            return Linear(
                plain(config), rngs, f"audio.{name}", "rpwc,wcd->rpd", shape, axes, std=fan_in_std(WIDTH * inputs), bias=True
            )

        self.first, self.second = convolution("first", audio.num_mels), convolution("second", D)
        # Fixed, as in Whisper: no gradient reaches them.
        positions_PD = jnp.zeros((audio.positions, D), jnp.float32) + sinusoids(audio.positions, D)
        self.positions = parameter(positions_PD, ("replicated", "embed"), "vector")
        self.layers = encoder_layers(in_dtype(config), "audio", False, rngs)
        self.norm = LayerNorm(D, audio.norm_eps)
        self.projector = Projector(in_dtype(config), "audio", rngs)

    def __call__(self, audio_RTM: jax.Array) -> jax.Array:
        """Return vectors of the decoder's width, [R, P / stack, D] in the compute dtype, in the order of time.

        audio_RTM: float log-mel spectrograms of `num_frames` frames.
        """
        x_RPD, stack = self.states(audio_RTM), self.config.audio.stack
        R, P, D = x_RPD.shape
        return self.projector(lax.reshape(x_RPD, (R, P // stack, D * stack), out_sharding=spec("rows", None, None)))

    def states(self, audio_RTM: jax.Array) -> jax.Array:
        """Return the encoder's states after the last norm, [R, P, D]."""
        config = self.config
        x = audio_RTM.astype(config.compute_dtype)
        for convolution, stride in ((self.first, 1), (self.second, 2)):
            x = ACTIVATIONS["gelu"](convolution(windows_of(x, stride)).astype(jnp.float32)).astype(x.dtype)
        positions_PD = reshard(lax.stop_gradient(self.positions[...]).astype(x.dtype), None, None)
        return self.norm(through_encoder(config, self.layers, x + positions_PD, config.audio.num_layers))


def windows_of(x_RTC: jax.Array, stride: int) -> jax.Array:
    """Return what a convolution of WIDTH frames sees at each place, [R, T / stride, WIDTH, C]; zeros beyond the ends."""
    T = x_RTC.shape[1]
    padded = jnp.pad(x_RTC, ((0, 0), (1, 1), (0, 0)))
    return jnp.stack([padded[:, first : first + T : stride] for first in range(WIDTH)], axis=2)


def sinusoids(length: int, size: int) -> np.ndarray:
    """Return sin and cos of position · 10000^(−i / (size/2 − 1)), float32 [length, size] (Whisper's code)."""
    half = size // 2
    rates = np.exp(-math.log(10_000) / max(1, half - 1) * np.arange(half))
    angles = np.arange(length)[:, None] * rates
    both = np.concatenate((np.sin(angles), np.cos(angles)), axis=1)
    return np.pad(both, ((0, 0), (0, size - 2 * half))).astype(np.float32)
