"""Speak a text with espeak-ng: the library that the package espeakng-loader ships, or else the installed program espeak-ng.

The same text always gives the same samples, on one version of espeak-ng.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.media import INSTALL
from data.media.audio import decode, resampled
from data.tasks.media.espeak_server import HEADER
from lm.errors import UserError

SERVER = Path(__file__).with_name("espeak_server.py")
SECONDS = 20  # for the program
Speaker = Callable[[str, str, int, int], np.ndarray]


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Return a spoken text, float32 [n] at 16 kHz.

    Args:
      voice: a language and a variant of espeak-ng, such as en-us+f2; en is British English. speed: words a minute, from 80.
      pitch: 0 to 99.
    Raises: UserError if espeak-ng is missing, or does not know the voice.
    """
    return _speaker(os.getpid())(text, voice, speed, pitch)


@functools.cache
def _speaker(process: int) -> Speaker:
    """Return the way to speak in a process: a fork of it must not use the pipes of its parent."""
    try:
        import espeakng_loader

        return _library(espeakng_loader.get_library_path(), espeakng_loader.get_data_path())
    except ImportError:
        if shutil.which("espeak-ng"):
            return _program
    raise UserError(f"speaking needs espeak-ng: the package espeakng-loader or the program espeak-ng; {INSTALL}")


def _library(path: str, data: str) -> Speaker:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, str(SERVER), path, data], **pipes)  # ends when its input is closed
    alone = threading.Lock()

    def say(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        with alone:
            try:
                server.stdin.write(json.dumps([text, voice, speed, pitch]).encode() + b"\n")
                server.stdin.flush()
            except BrokenPipeError:
                raise UserError(f"espeak-ng: {path} cannot be loaded; {INSTALL}") from None
            header = server.stdout.read(HEADER.size)
            rate, size = HEADER.unpack(header) if len(header) == HEADER.size else (0, 0)
            samples = server.stdout.read(size)
        if not rate:
            raise UserError(f"espeak-ng does not know the voice {voice!r}, or fails in it; name another one")
        return resampled(np.frombuffer(samples, np.int16).astype(np.float32) / 32768, rate)

    return say


def _program(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    command = ["espeak-ng", "-D", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", "--", text]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS)
    if done.returncode != 0 or not done.stdout:
        said = " ".join(done.stderr.decode(errors="replace").split())[:100]
        raise UserError(f"espeak-ng -v {voice} fails ({said}); name another voice")
    return decode(done.stdout, "espeak-ng")
