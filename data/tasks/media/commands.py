"""Spoken commands, made by espeak-ng: "Which word is said?"

The words are the ten commands of Speech Commands (Warden 2018, arXiv 1804.03209).
"""

import base64
import random
from collections.abc import Iterator

import numpy as np

from data.media.audio import RATE, encode_wav
from data.tasks.media.espeak import speak
from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
QUESTIONS = ("Which word is said?", "What does the voice say?", "Write the spoken word.")
ACCENTS = ("en-us", "en", "en-gb-scotland")
# Few speakers are learnt by heart. All are in espeak-ng 1.51.
SPEAKERS = tuple(
    "m1 m2 m3 m4 m5 m6 m8 f1 f2 f3 f5 Alex Andrea Andy Annie "
    "Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed adam anika antonio "
    "aunty belinda benjamin boris david edward grandma grandpa ian john linda max pablo paul steph".split()
)
HELD_OUT_SPEAKERS = ("m7", "f4", "Alicia", "Denis")
SPEEDS, PITCHES = range(110, 211, 5), range(20, 81, 3)


def commands(
    split: str, seed: int, voices: str = "seen", seconds: float = 1.0, noise: float = 0.0, warp: float = 0.0, valid: int = 500
) -> Iterator[dict]:
    """Yield records such as "Which word is said?" -> "left", with one sound; `rejected` is another word.

    A word in a voice of one accent, speed and pitch is held out from train.

    voices: those of valid. "seen": the speakers of train. "heldout": the speakers in HELD_OUT_SPEAKERS, whom train never has.
    seconds: length of the sounds; the word stands at a random place. noise: standard deviation of white noise that is added.
    warp: each word is played faster or slower by a random factor in 1 ± warp, as if the speaker were smaller or larger (speed
    perturbation, Ko et al. 2015, "Audio augmentation for speech recognition"); for more voices in training.
    Raises: UserError without espeak-ng.
    """
    if voices not in ("seen", "heldout"):
        raise UserError(f"commands: voices={voices!r} is neither seen nor heldout")
    if not (0.8 <= seconds <= 30 and 0 <= noise <= 1):
        raise UserError(f"commands: needs seconds in 0.8…30 and noise in 0…1, not seconds={seconds}, noise={noise}")
    if not 0 <= warp <= 0.5:
        raise UserError(f"commands: needs warp in 0…0.5, not {warp}")
    speakers = HELD_OUT_SPEAKERS if voices == "heldout" and split == "valid" else SPEAKERS

    def draw(rng: random.Random) -> tuple[bool, dict]:
        word, voice = rng.choice(WORDS), f"{rng.choice(ACCENTS)}+{rng.choice(speakers)}"
        speed, pitch = rng.choice(SPEEDS), rng.choice(PITCHES)
        if (out := held_out(f"{word} {voice} {speed} {pitch}")) != (split == "valid"):
            return out, {}
        spoken = speak(word, voice, speed, pitch)
        spoken = _played(spoken, 1 + rng.uniform(-warp, warp)) if warp else spoken
        sound = base64.b64encode(encode_wav(_placed(spoken, seconds, noise, rng))).decode()
        prompt, other = rng.choice(QUESTIONS), rng.choice([other for other in WORDS if other != word])
        return out, exercise("commands", prompt, word, other, audios=[f"data:audio/wav;base64,{sound}"], voice=voice)

    return records(draw, split, seed, valid)


def _played(word: np.ndarray, speed: float) -> np.ndarray:
    """Return a sound, float32 [n], played at `speed`: its pitch and its resonances move by this factor."""
    return np.interp(np.arange(0, len(word) - 1, speed), np.arange(len(word)), word).astype(np.float32)


def _placed(word: np.ndarray, seconds: float, noise: float, rng: random.Random) -> np.ndarray:
    """Return a word at a random place of a sound, float32 [seconds · RATE], without the silence around it."""
    loud = np.flatnonzero(np.abs(word) > 0.01)
    word = word[loud[0] : loud[-1] + 1] if len(loud) else word
    sound = np.random.default_rng(rng.getrandbits(32)).normal(0, noise, int(seconds * RATE)).astype(np.float32)
    word = word[: len(sound)]
    begin = rng.randint(0, len(sound) - len(word))
    sound[begin : begin + len(word)] += word
    return sound
