"""Speak a text with espeak-ng: the library that the package espeakng-loader ships.

The same text always gives the same samples, on one version of espeak-ng.
"""

import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from data.media import INSTALL, library
from data.media.audio import resampled
from data.tasks.media.espeak_server import HEADER
from lm.errors import UserError

SERVER = Path(__file__).with_name("espeak_server.py")


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """Return a spoken text, float32 [n] at 16 kHz.

    Args:
      voice: a language and a variant of espeak-ng, such as en-us+f2; en is British English. speed: words a minute, from 80.
      pitch: 0 to 99.
    Raises: UserError if espeak-ng is missing, or does not know the voice.
    """
    server, alone = _server(os.getpid())
    with alone:
        try:
            server.stdin.write(json.dumps([text, voice, speed, pitch]).encode() + b"\n")
            server.stdin.flush()
        except BrokenPipeError:
            raise UserError(f"espeak-ng: its library cannot be loaded; {INSTALL}") from None
        header = server.stdout.read(HEADER.size)
        rate, size = HEADER.unpack(header) if len(header) == HEADER.size else (0, 0)
        samples = server.stdout.read(size)
    if not rate:
        raise UserError(f"espeak-ng does not know the voice {voice!r}, or fails in it; name another one")
    return resampled(np.frombuffer(samples, np.int16).astype(np.float32) / 32768, rate)


@functools.cache
def _server(process: int) -> tuple[subprocess.Popen, threading.Lock]:
    """Return the server of a process: a fork of it must not use the pipes of its parent. It ends when its input is closed."""
    loader = library("espeakng_loader", "speaking")
    command = [sys.executable, str(SERVER), loader.get_library_path(), loader.get_data_path()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE), threading.Lock()
