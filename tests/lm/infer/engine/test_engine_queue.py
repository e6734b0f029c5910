"""The queue of the engine: text passes a request whose images are being encoded, and nothing passes it afterwards."""

import dataclasses

import numpy as np
import pytest

from lm.infer.engine.request import Handle, Request, tiles_of
from lm.infer.engine.schedule import Schedule
from lm.infer.engine.sequence import Blocks, Sequence
from lm.model.media import Media
from tests.lm.infer.engine.test_engine_media import BASE, IMAGE, VISION

CONFIG = dataclasses.replace(BASE, vision=VISION)


def waiting(image: bool = False) -> Sequence:
    media = tiles_of(Media(np.zeros((1, 1, *VISION.shape), np.float32))) if image else ()
    prompt = ((IMAGE,) * VISION.tokens if image else ()) + (1, 2)
    return Sequence(Handle(Request(prompt, 4, media=media), lambda event: None), CONFIG, None, "")


def encode(sequence: Sequence) -> None:
    sequence.shown.vectors_VD = np.zeros((VISION.tokens, CONFIG.embed_dim), np.float32)


@pytest.fixture
def schedule() -> Schedule:
    return Schedule([Blocks(64, 4)], rows=2, budget=16, drafts=0, drafter=lambda wanted: [])


def test_text_passes_an_image_until_it_is_encoded(schedule):
    image, text, later = waiting(image=True), waiting(), waiting()
    for sequence in (image, text):
        schedule.waiting.append(sequence)
    assert [part.sequence for part in schedule.step()] == [text]
    assert schedule.waiting[0] is image  # so it is encoded next
    schedule.waiting.append(later)
    encode(image)
    assert image in [part.sequence for part in schedule.step()] and later in schedule.waiting
    schedule.remove(text)
    schedule.step()
    assert schedule.running == [image, later]


def test_an_encoded_image_that_finds_no_room_is_not_passed():
    schedule = Schedule([Blocks(3, 4)], rows=3, budget=16, drafts=0, drafter=lambda wanted: [])
    image, text, later = waiting(image=True), waiting(), waiting()
    for sequence in (image, text, later):
        schedule.waiting.append(sequence)
    schedule.step()
    assert schedule.running == [text, later]
    encode(image)
    small = waiting()
    schedule.waiting.append(small)
    schedule.step()
    assert schedule.running == [text, later] and list(schedule.waiting) == [image, small]
    for sequence in (text, later):
        schedule.remove(sequence)
    schedule.step()
    assert schedule.running[0] is image
