"""Audio files: every format gives its sound at 16 kHz, and every hostile one a line, within bounds."""

import functools
import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from data.media import audio
from data.media.audio import RATE, decode, encode_wav, resampled
from lm.errors import UserError


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def saved(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("format, subtype, tolerance", [
    ("WAV", "PCM_16", 1e-4), ("WAV", "FLOAT", 0), ("WAV", "PCM_24", 1e-6), ("WAV", "ULAW", 0.02), ("FLAC", "PCM_16", 1e-4),
    ("OGG", "VORBIS", 0.05), ("OGG", "OPUS", 0.05), ("MP3", None, 0.05),
])  # fmt: skip
def test_formats(format, subtype, tolerance):
    sound = tone(440)
    found = decode(saved(sound, format=format, subtype=subtype), "a")
    assert found.dtype == np.float32
    if format != "MP3":
        assert len(found) == len(sound)
    best = max(range(3000) if format == "MP3" else [0], key=lambda at: _agreement(found[at:], sound))
    both = min(len(found) - best, len(sound))
    assert np.abs(found[best:][:both] - sound[:both])[400:-400].max() <= tolerance


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float(a[1000:3000] @ b[1000:3000])


def test_our_own_wav_files():
    sound = tone(300)
    assert soundfile.read(io.BytesIO(encode_wav(sound)))[1] == RATE
    assert np.abs(decode(encode_wav(sound), "a") - sound).max() < 1e-4


def test_channels_are_averaged():
    left, right = tone(440), tone(1000)
    assert np.abs(decode(saved(np.stack([left, right], 1), subtype="FLOAT"), "a") - (left + right) / 2).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 44101])
def test_resampling_keeps_tones_and_removes_what_does_not_fit(rate):
    ours = resampled(tone(440, rate=rate), rate)
    assert ours.dtype == np.float32 and abs(len(ours) - RATE // 2) <= 1
    assert np.abs(ours[500:-500] - tone(440)[500 : len(ours) - 500]).max() < 2e-3
    if rate > 20_000:
        assert np.abs(resampled(tone(10_000, rate=rate), rate)[500:-500]).max() < 2e-3


def wav(
    rate: int = RATE, channels: int = 1, size: int | None = None, body: bytes = bytes(3200), bits: int = 16, kind: int = 1
) -> bytes:
    """Return a WAV file with any header."""
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits)
    parts = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body) if size is None else size)
    return b"RIFF" + struct.pack("<I", len(parts) + len(body)) + parts + body


@functools.cache
def hostile() -> dict[str, tuple[bytes, str]]:
    flac, ogg = saved(tone(440, 3), format="FLAC"), saved(tone(440, 3), format="OGG")
    hours = saved(np.zeros(audio.MAX_SECONDS * 8000 + 8000, np.int16), 8000, "FLAC")
    assert len(hours) < 20_000
    return {
        "empty": (b"", "no audio"),
        "text": (b"#!/bin/sh\nrm -rf /\n" * 9, "no audio"),
        "image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "no audio"),
        "AIFF": (saved(tone(440), format="AIFF"), "format AIFF"),
        "no samples": (wav(body=b""), "without a sample"),
        "header only": (wav()[:20], "no audio"),
        "long": (b"RIFF" + bytes(audio.MAX_BYTES), "134,217,732 bytes"),
        "hours in few bytes": (hours, "more than 600 seconds"),
        "cut WAV": (saved(tone(440))[:-4000], "ends after"),
        "cut FLAC": (flac[: len(flac) // 2], "ends after|damaged"),
        "cut OGG header": (ogg[:100], "no audio"),
        "1 Hz": (wav(rate=1), "1 channels of 1 Hz"),
        "4 GHz": (wav(rate=2**32 - 1), "Hz|no audio"),
        "many channels": (wav(channels=1000, body=bytes(4000)), "1,000 channels|no audio"),
        "no channels": (wav(channels=0), "no audio"),
        "NaN": (wav(bits=32, kind=3, body=struct.pack("<4f", 0, float("nan"), 0, 0)), "no numbers"),
        "infinite": (wav(bits=32, kind=3, body=struct.pack("<4f", 0, float("inf"), 0, 0)), "no numbers"),
        "promise": (wav(size=0x70000000), "ends after 3,200 of 1,879,048,192"),
    }


@pytest.mark.parametrize("name", hostile())
def test_a_hostile_file_is_one_line(name):
    data, words = hostile()[name]
    with pytest.raises(UserError, match=f"^file.wav: .*({words})") as error:
        decode(data, "file.wav")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_stream_that_did_not_know_its_size_is_read(size):
    body = (tone(440) * 32767).astype("<i2").tobytes()
    assert len(decode(wav(size=size, body=body), "a")) == len(body) // 2


def test_damaged_bytes_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        whole = np.frombuffer(saved(tone(440, 0.3), format=format), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, len(data), rng.integers(1, 12))] = rng.integers(0, 256)
            try:
                samples = decode(data.tobytes(), "x")
            except UserError:
                continue
            assert samples.dtype == np.float32 and np.isfinite(samples).all()


@pytest.mark.slow
def test_memory_is_bounded():
    """The longest file that is read."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    code = """
from tests.data.media.test_audio import *
data = saved(np.zeros((audio.MAX_SECONDS * 48000, 2), np.int16), 48000, "FLAC")
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
open("/proc/self/clear_refs", "w").write("5")
before = peak()
assert len(decode(data, "long")) == audio.MAX_SECONDS * RATE
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 30


def test_without_soundfile_a_line_says_what_to_install():
    code = "import sys; sys.modules['soundfile'] = None\nfrom data.media.audio import decode\ndecode(b'', 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: reading audio needs the package soundfile" in done.stderr and "requirements/media.txt" in done.stderr
