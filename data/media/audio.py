"""Decode an audio file of a stranger to float32 samples of one channel at 16 kHz, with bounded memory and time.

Bounds: a file of MAX_BYTES, MAX_SECONDS of sound, and MAX_SAMPLES values over all channels. Together they allow about 1 GB
of memory and ten seconds. A file is read in blocks, because its header may promise any length, and a few bytes of FLAC may hold
hours of silence. For damaged MP3 files, the decoder inside libsndfile also writes notes to stderr, which nothing turns off.
"""

import io
import math
import struct

import numpy as np

from data.media import library, reason
from lm.errors import UserError

RATE = 16_000  # samples a second
MAX_BYTES = 128 << 20  # of a file
MAX_SECONDS = 600
MAX_SAMPLES = 60_000_000  # over all channels: MAX_SECONDS of 48 kHz in stereo
RATES = (1_000, 384_000)  # Hz
MAX_CHANNELS = 8
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
BLOCK = 1 << 16  # samples of a channel that are read at a time
CONVERT = "convert it to WAV, FLAC, OGG or MP3"


def decode(data: bytes, where: str) -> np.ndarray:
    """Return the sound as float32 [n] at RATE, in about [−1, 1]: the mean of the channels, resampled.

    Args: data: the file. where: its name, for errors.
    Raises: UserError for a file that is larger than the bounds above, of no format in FORMATS, damaged, truncated, or empty.
    """
    soundfile = library("soundfile", "reading audio")
    if len(data) > MAX_BYTES:
        raise UserError(f"{where}: {len(data):,} bytes, and audio may have {MAX_BYTES:,}; cut it into shorter files")
    _check_whole_wav(data, where)
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except Exception as error:  # of libsndfile; ValueError and TypeError for odd numbers in a header
        raise UserError(f"{where}: no audio that can be read ({reason(error)}); {CONVERT}") from None
    with file:
        rate, channels = file.samplerate, file.channels
        if file.format not in FORMATS:
            raise UserError(f"{where}: audio of the format {file.format}; {CONVERT}")
        if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MAX_CHANNELS:
            raise UserError(
                f"{where}: {channels:,} channels of {rate:,} Hz; at most {MAX_CHANNELS} channels of {RATES[0]:,} to "
                f"{RATES[1]:,} Hz are read; convert it"
            )
        samples = _samples(file, min(MAX_SECONDS * rate, MAX_SAMPLES // channels), where)
    return resampled(samples, rate)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return float32 samples [n] of `rate` Hz at RATE, by a polyphase filter that removes what RATE cannot hold."""
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common).astype(np.float32)


def encode_wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return float samples [n] in [−1, 1] as the bytes of a WAV file of 16 bits."""
    values = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(values), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", len(values)
    )
    return header + values


def _samples(file, most: int, where: str) -> np.ndarray:
    """Return the mean of the channels, float32 [n], of an open file of at most `most` samples a channel."""
    promised, blocks, count = file.frames, [], 0
    while True:
        try:
            block = file.read(BLOCK, dtype="float32", always_2d=True)
        except Exception as error:
            raise UserError(f"{where}: damaged audio ({reason(error)}); replace it or leave it out") from None
        if not len(block):
            break
        count += len(block)
        if count > most:
            seconds = most / file.samplerate
            raise UserError(f"{where}: more than {seconds:.0f} seconds of audio; cut it into shorter files")
        blocks.append(block.mean(axis=1))
    # The number of frames in an MP3 is an estimate, and a stream may not know its own.
    if file.format not in ("MP3", "OGG") and count < promised < 1 << 40:
        raise UserError(f"{where}: the audio ends after {count:,} of {promised:,} samples; fetch the file again")
    if not count:
        raise UserError(f"{where}: audio without a sample; replace it or leave it out")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise UserError(f"{where}: audio with samples that are no numbers (NaN or infinity); replace it or leave it out")
    return samples


def _check_whole_wav(data: bytes, where: str) -> None:
    """Raise UserError if a WAV file is shorter than it says, which libsndfile does not mind.

    A size of nearly 2 or 4 GiB means that the program that wrote the file to a pipe did not know it.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            if size < 0x7FFFF000 and at + 8 + size > len(data):
                raise UserError(f"{where}: the audio ends after {len(data) - at - 8:,} of {size:,} bytes; fetch the file again")
            return
        at += 8 + size + size % 2
