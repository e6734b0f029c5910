"""Tasks whose items have images: the model's answers are those of transformers, however they are batched."""

import base64
import json

import pytest

from data.text.tokenizer import load_tokenizer
from lm.convert.multimodal.processor import towers_of
from lm.errors import UserError
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import TaskSettings
from lm.evals.tasks.catalogue import open_task
from lm.infer.load import load_model
from tests.data.media.pictures import picture, saved
from tests.lm.evals.tasks import task_rows as rows
from tests.lm.serve import vision_model

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick")
PICTURES = [picture(20, 30), picture(24, 12, 1), picture(9, 9, 2)]
COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vision_model.save_vision_model(tmp_path_factory.mktemp("vision"))


@pytest.fixture
def task(tmp_path):
    """A task with a file, a data: URL, two images and a broken one."""
    url = "data:image/png;base64," + base64.b64encode(saved(PICTURES[1])).decode()
    items = tmp_path / "own"
    (items / "images").mkdir(parents=True)
    (items / "images/first.png").write_bytes(saved(PICTURES[0]))
    (items / "images/broken.png").write_bytes(b"no image")
    written = [
        {"q": "Is it a cat?", "picture": "images/first.png", "a": "yes"},
        {"q": "Is it?", "picture": url, "a": "no"},
        {"q": "Is <image> like <image>?", "picture": ["images/first.png", url], "a": "no"},
        {"q": "Is it a cat?", "picture": url, "a": "yes"},
        {"q": "What?", "picture": "images/broken.png", "a": "no"},
        {"q": "What?", "picture": "../own.yaml", "a": "no"},
        {"q": "What?", "picture": None, "a": "no"},
    ]
    (items / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in written))
    kwargs = f"generation_kwargs: {{until: [], max_gen_toks: {COUNT}, do_sample: false}}"
    keys = ["kind: generation", "doc_to_text: q", "doc_to_target: a", "doc_to_image: picture", "metric_list: [exact_match]"]
    (tmp_path / "own.yaml").write_text("\n".join([*keys, kwargs]))
    return open_task(str(tmp_path / "own.yaml"), TaskSettings(data_dir=tmp_path, chat=True))


@pytest.fixture(scope="module")
def expected(folder):
    def answer(*parts):
        message = {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p[0] for p in parts]}
        shown = [part[1] for part in parts if not isinstance(part, str)]
        return vision_model.greedy_answer(folder, [message], shown, COUNT)

    first, second = (({"type": "image"}, one) for one in PICTURES[:2])
    return [
        answer(first, "Is it a cat?"),
        answer(second, "Is it?"),
        answer("Is ", first, " like ", second, "?"),
        answer(second, "Is it a cat?"),
    ]


@pytest.mark.parametrize("room", [None, 0], ids=["packed", "in place"])
def test_answers_are_those_of_transformers(folder, task, expected, room, tmp_path):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    towers = towers_of(folder, model.config, tokenizer)
    for _ in range(2):  # the second time from the cache
        engine = ModelSubject(model, Encoding(tokenizer, towers=towers), name="m", room=room, cache=tmp_path / "answers.sqlite")
        outcome = task.run(engine)
        assert [sample["generation"] for sample in outcome.samples] == expected and len(set(expected)) == 4
    assert engine.stats["cached"] == 4
    problems = outcome.results["problems"]["malformed_items"]
    assert problems["n"] == 3 and "no image of the formats" in problems["examples"][0]
    assert "leads out of" in problems["examples"][1] and "no image in its columns" in problems["examples"][2]
    note = outcome.samples[1]["messages"][0]["content"]
    assert note.startswith("[image: ") and note.endswith("]Is it?")
    json.dumps(outcome.samples)


def test_what_cannot_be_shown(folder, task):
    with pytest.raises(UserError, match="set --config.chat_template=own"):
        open_task("digits", TaskSettings())
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    outcome = task.run(ModelSubject(model, Encoding(tokenizer), name="m"))
    assert "a message with image, and only text is read here" in outcome.results["problems"]["malformed_items"]["examples"][0]


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_tasks_that_are_made_on_the_spot(name):
    class Watcher(rows.Recorder):
        def chat_prompt(self, messages, prefill=""):
            shown.append(messages)
            return messages[-1]["content"]

    shown = []
    outcome = open_task(name, TaskSettings(chat=True, limit=3)).run(Watcher(answer=lambda text: "7"))
    assert outcome.results["n"] == 3 and len(shown) == 3
    assert all(len(messages[-1]["media"]) == 1 for messages in shown)
