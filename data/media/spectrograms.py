"""Prepare audio for a speech tower: windows of some seconds, each a log-mel spectrogram.

The values equal those of transformers' WhisperFeatureExtractor (Radford et al. 2022, "Robust Speech Recognition via Large-Scale
Weak Supervision", arXiv 2212.04356, section 2.2).
Letters: N windows, F frames of 10 ms, M mels.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data.media.audio import RATE
from lm.errors import UserError
from lm.files.untrusted import short

WINDOW = 400  # samples of a Fourier transform: 25 ms
HOP = 160  # samples between frames: 10 ms
FRAMES = RATE // HOP  # a second
BLOCK = 1000  # frames that are transformed at a time
MAX_SECONDS = 30  # of a window, as in Whisper


class Tower(NamedTuple):
    """How a speech tower wants its audio.

    mels: M. seconds: of a window, so F = 100 · seconds. whole: the windows are cut from one spectrogram of the whole sound, as
    Voxtral wants them, so they share one maximum and the frames at their edges see the neighbour. Else each window is alone.
    """

    mels: int = 80
    seconds: int = 30
    whole: bool = False


def prepare(samples: np.ndarray, tower: Tower) -> np.ndarray:
    """Return the log-mel spectrograms of the windows of a sound, float32 [N, F, M]. The last window ends in silence.

    Args: samples: float [n] at RATE, n > 0.
    """
    length = tower.seconds * RATE
    windows = np.zeros((-(-len(samples) // length), length), np.float32)
    windows.reshape(-1)[: len(samples)] = samples
    if tower.whole:
        return log_mel(windows.reshape(-1), tower.mels).reshape(len(windows), -1, tower.mels)
    return np.stack([log_mel(window, tower.mels) for window in windows])


def log_mel(samples: np.ndarray, mels: int) -> np.ndarray:
    """Return the log-mel spectrogram of one window, float32 [F, M], of float samples [160 · F].

    P = |STFT|² with a Hann window of 400 samples, reflected at the ends; E = log10 max(mel · P, 1e-10);
    (max(E, max E − 8) + 4) / 4.
    """
    frames = len(samples) // HOP
    padded = np.pad(samples.astype(np.float64), WINDOW // 2, mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames]
    hann = np.hanning(WINDOW + 1)[:-1]
    filters = mel_filters(mels)
    energy = np.empty((frames, mels))
    for begin in range(0, frames, BLOCK):
        spectrum = np.fft.rfft(cut[begin : begin + BLOCK] * hann)
        energy[begin : begin + BLOCK] = (spectrum.real**2 + spectrum.imag**2) @ filters
    energy = np.log10(np.maximum(energy, 1e-10))
    return ((np.maximum(energy, energy.max() - 8) + 4) / 4).astype(np.float32)


@functools.lru_cache(4)
def mel_filters(mels: int) -> np.ndarray:
    """Return triangular filters from 0 to 8 kHz on Slaney's mel scale, each of area 1 in Hz: float64 [201, M].

    The scale is linear below 1 kHz, 15 mels a kHz, and logarithmic above, 27 mels for a factor of 6.4 (Slaney 1998, "Auditory
    Toolbox").
    """
    linear, above, step = 200 / 3, 1000.0, np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / above) / step
    mel = np.linspace(0, top, mels + 2)
    edges = np.where(mel < 15, mel * linear, above * np.exp(step * (mel - 15)))
    bins = np.linspace(0, RATE // 2, WINDOW // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    return triangles * 2 / (high - low)


def tower_of(settings: Mapping[str, Any], where: str) -> Tower:
    """Return the tower of a preprocessor_config.json of Whisper. Raises: UserError for settings that `prepare` cannot use."""
    kind = settings.get("feature_extractor_type")
    if kind != "WhisperFeatureExtractor":
        raise UserError(
            f"{where}: feature_extractor_type={short(kind)} is not WhisperFeatureExtractor; use a model with this one"
        )
    for key, value in {"sampling_rate": RATE, "hop_length": HOP, "n_fft": WINDOW, "dither": 0, "padding_value": 0}.items():
        if settings.get(key, value) != value:
            raise UserError(f"{where}: {key}={short(settings[key])}, and only {value} is supported")
    mels, seconds = settings.get("feature_size", 80), settings.get("chunk_length", 30)
    if not (type(mels) is int and 0 < mels <= 128 and type(seconds) is int and 0 < seconds <= MAX_SECONDS):
        raise UserError(
            f"{where}: feature_size={short(mels)} must be in 1…128, chunk_length={short(seconds)} in 1…{MAX_SECONDS}"
        )
    return Tower(mels, seconds)
