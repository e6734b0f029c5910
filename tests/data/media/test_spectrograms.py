"""Log-mel spectrograms equal those of transformers' WhisperFeatureExtractor."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from data.media.audio import RATE
from data.media.spectrograms import Tower, mel_filters, prepare, tower_of
from lm.errors import UserError

TOLERANCE = 1e-4


def sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    time = np.arange(2 * RATE) / RATE
    return {
        "noise": rng.normal(0, 0.1, 2 * RATE),
        "sweep": 0.8 * np.sin(2 * np.pi * 1500 * time**2),
        "speechlike": rng.normal(0, 0.3, 3 * RATE) * np.abs(np.sin(np.arange(3 * RATE) / 4000)) ** 3,
        "quiet": rng.normal(0, 1e-6, RATE),
        "silence": np.zeros(RATE),
        "one sample": np.ones(1),
    }


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("name", sounds())
@pytest.mark.parametrize("by", ["torch", "numpy"])
def test_one_window(name, mels, by):
    whisper = WhisperFeatureExtractor(feature_size=mels, chunk_length=4)
    sound = np.zeros(4 * RATE, np.float32)
    sound[: len(sounds()[name])] = sounds()[name]
    extract = {"torch": whisper._torch_extract_fbank_features, "numpy": whisper._np_extract_fbank_features}[by]
    ours = prepare(sounds()[name].astype(np.float32), tower_of(whisper.to_dict(), "x"))
    assert ours.dtype == np.float32 and ours.shape == (1, 400, mels)
    np.testing.assert_allclose(ours, extract(sound[None], "cpu").transpose(0, 2, 1), atol=TOLERANCE)


def test_a_window_of_thirty_seconds_as_users_call_it():
    sound = sounds()["speechlike"].astype(np.float32)
    theirs = WhisperFeatureExtractor()(sound, sampling_rate=RATE, return_tensors="np")["input_features"]
    np.testing.assert_allclose(prepare(sound, Tower()), theirs.transpose(0, 2, 1), atol=TOLERANCE)


def test_several_windows_are_the_same_as_each_alone():
    sound = np.random.default_rng(1).normal(0, 0.1, 5 * RATE + 7)
    tower = Tower(seconds=2)
    whole = prepare(sound, tower)
    assert whole.shape == (3, 200, 80)
    for n, window in enumerate(whole):
        assert np.array_equal(window, prepare(sound[2 * RATE * n : 2 * RATE * (n + 1)], tower)[0])


def test_windows_of_one_spectrogram_as_voxtral_cuts_them():
    sound = np.random.default_rng(1).normal(0, 0.1, 5 * RATE + 7).astype(np.float32) * np.linspace(0.001, 1, 5 * RATE + 7)
    whisper = WhisperFeatureExtractor(feature_size=128, chunk_length=2)
    options = {
        "truncation": False,
        "padding": True,
        "pad_to_multiple_of": 2 * RATE,
        "sampling_rate": RATE,
        "return_tensors": "np",
    }
    theirs = whisper(sound.astype(np.float32), **options)["input_features"].reshape(128, -1, 200).transpose(1, 2, 0)
    ours = prepare(sound, Tower(128, 2, whole=True))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert not np.allclose(ours, prepare(sound, Tower(128, 2)), atol=0.1)


@pytest.mark.parametrize("mels", [80, 128])
def test_filters(mels):
    np.testing.assert_allclose(mel_filters(mels), WhisperFeatureExtractor(feature_size=mels).mel_filters, atol=1e-9)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "is not WhisperFeatureExtractor"),
        ({"n_fft": 512}, "n_fft=512"),
        ({"sampling_rate": 8000}, "sampling_rate=8000"),
        ({"feature_size": 10**9}, "feature_size"),
        ({"chunk_length": "long"}, "chunk_length"),
    ],
)
def test_settings_that_cannot_be_followed(settings, words):
    with pytest.raises(UserError, match=f"^config: .*{words}"):
        tower_of({"feature_extractor_type": "WhisperFeatureExtractor"} | settings, "config")
