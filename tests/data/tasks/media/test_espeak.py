"""espeak-ng speaks the same text in the same way, whatever was spoken before, and a fork of the process has its own."""

import multiprocessing

import numpy as np
import pytest

from data.tasks.media.espeak import speak
from lm.errors import UserError


def _spoken(_) -> bytes:
    return speak("stop", "en+f2", 150, 50).tobytes()


def test_a_text_sounds_the_same_after_others():
    first = speak("stop", "en+f2", 150, 50)
    assert first.dtype == np.float32 and 3000 < len(first) < 20_000 and 0.1 < np.abs(first).max() <= 1.2
    others = [speak("stop", "en+m1", 150, 50), speak("stop", "en+f2", 200, 50), speak("go", "en+f2", 150, 50)]
    assert len({other.tobytes() for other in (first, *others)}) == 4
    assert speak("stop", "en+f2", 150, 50).tobytes() == first.tobytes()
    assert len(speak("stop", "en+f2", 90, 50)) > len(first) > len(others[1])


def test_an_unknown_voice_is_one_line_and_the_next_one_speaks():
    with pytest.raises(UserError, match="does not know the voice 'xx'"):
        speak("stop", "xx", 150, 50)
    assert len(speak("stop", "en", 150, 50))


def test_forks_do_not_share_a_pipe():
    here = _spoken(0)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert set(pool.map(_spoken, range(30))) == {here}
