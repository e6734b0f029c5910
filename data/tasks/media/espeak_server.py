"""A process that speaks: data/tasks/media/espeak.py starts this file and asks it for one text after the other.

    python espeak_server.py LIBRARY DATA    where espeak-ng's shared library and its data are

A request is a line of JSON, [text, voice, speed, pitch]. An answer is a header of two integers, the rate in Hz and the number
of bytes, and so many bytes of 16-bit samples. The rate is 0 if the voice is unknown or the library crashed.

The library keeps state from one text to the next, in variables that nothing resets, so the same text sounds different each
time. Therefore each text is spoken by a fork of the process, in which nothing was spoken yet. This file needs only the standard
library.
"""

import ctypes
import json
import os
import struct
import sys

HEADER = struct.Struct("<II")
# Names and numbers of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS, INITIALIZE_DONT_EXIT = 2, 0x8000
RATE, PITCH, POS_CHARACTER, CHARS_UTF8 = 1, 3, 1, 1


def main(path: str, data: str) -> None:
    library = ctypes.CDLL(path)
    rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), INITIALIZE_DONT_EXIT)
    out = sys.stdout.buffer
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            samples = speak(library, *json.loads(line)) if rate > 0 else None
            if samples is None:
                os._exit(1)
            out.write(HEADER.pack(rate, len(samples)) + samples)
            out.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            out.write(HEADER.pack(0, 0))
            out.flush()


def speak(library: ctypes.CDLL, text: str, voice: str, speed: int, pitch: int) -> bytes | None:
    """Return the samples of a spoken text; None if the voice is unknown."""
    blocks = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples, count: int, events) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(keep)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        return None
    library.espeak_SetParameter(RATE, speed, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    spoken = text.encode() + b"\0"
    if hasattr(library, "espeak_ng_SetRandSeed"):  # since 1.52
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken)), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
    return b"".join(blocks)


if __name__ == "__main__":
    main(*sys.argv[1:])
