"""lm.generate and conversations with files of images: answers are those of transformers."""

import json
import sys

import pytest

import lm
from lm.convert.multimodal.processor import towers_of
from lm.errors import UserError
from lm.infer.conversation import Conversation
from lm.infer.engine.open import open_engine
from lm.infer.engine.request import Sampling
from lm.infer.engine.room import Capacity
from lm.infer.prompts import parts_of, with_parts
from tests.data.media.pictures import picture, saved
from tests.lm.serve import vision_model
from tests.verbs import runs

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick")
PICTURES, COUNT, ASKED = [picture(20, 30), picture(24, 12, 1)], 8, "Is it a cat?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = vision_model.save_vision_model(tmp_path_factory.mktemp("vision"))
    for n, one in enumerate(PICTURES):
        (folder / f"{n}.png").write_bytes(saved(one))
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    def answer(*numbers):
        parts = [*[{"type": "image"}] * len(numbers), {"type": "text", "text": ASKED}]
        return vision_model.greedy_answer(folder, [{"role": "user", "content": parts}], [PICTURES[n] for n in numbers], COUNT)

    return {numbers: answer(*numbers) for numbers in ((), (0,), (0, 1))}


def test_generate(folder, expected):
    model, tokenizer = lm.load(folder)
    towers = towers_of(folder, model.config, tokenizer)
    asked = []
    for numbers in expected:
        parts = parts_of({"image": [str(folder / f"{n}.png") for n in numbers]}, towers)
        asked.append([{"role": "user", "content": with_parts(ASKED, parts)}])
    options = dict(max_new_tokens=COUNT, temperature=0, towers=towers)
    assert lm.generate(model, tokenizer, asked, **options) == list(expected.values())
    pieces = []
    lm.generate(model, tokenizer, asked[1:2], stream=pieces.append, **options)
    assert "".join(pieces) == expected[0,]
    with pytest.raises(UserError, match="--audio=x.wav: this model has no encoder of audio"):
        parts_of({"audio": ["x.wav"]}, towers)
    with pytest.raises(UserError, match="--image=missing.png: No such file"):
        parts_of({"image": ["missing.png"]}, towers)


def test_a_conversation_shows_a_file_once(folder, expected):
    engine = open_engine(folder, Capacity(rows=1, pages=100))
    try:
        towers = towers_of(folder, engine.config, engine.tokenizer)
        talk = Conversation(engine, Sampling(COUNT, 0.0), towers=towers)
        talk.show("image", str(folder / "0.png"))
        assert "".join(piece.text for piece in talk.ask(ASKED)) == expected[0,]
        talk.show("image", str(folder / "1.png"))
        list(talk.ask("And this?"))
        shown = [[part["type"] for part in m["content"]] for m in talk.messages if m["role"] == "user"]
        assert shown == [["image", "text"]] * 2
        json.dumps(talk.messages)
        list(talk.ask("So?"))
        assert talk.messages[-2]["content"] == "So?"
    finally:
        engine.close()


def test_the_command(folder, expected):
    flags = [f"--checkpoint={folder}", "--temperature=0", f"--max_new_tokens={COUNT}", f"--image={folder / '0.png'}"]
    said = f"/image {folder / '1.png'}\n{ASKED}\n/exit\n"
    done = runs.run([sys.executable, "-m", "lm.chat", *flags], stdin=said)
    assert done.stdout == f"{expected[0, 1]}\n", done.stderr
    assert "1.png goes with the next message" in done.stderr
