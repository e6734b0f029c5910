"""Content parts and columns: media are found in order and stand at their places; no path leads out, nothing is fetched."""

import base64
import json
import os
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from data.chat.conversations import examples_of, read_examples, split_number
from data.chat.messages import messages_of
from data.chat.records import Record, read_records
from data.media.audio import encode_wav
from data.media.parts import MAX_MEDIA, PLACEHOLDER, resolved
from lm.errors import UserError
from tests.data.media.pictures import picture, saved

IMAGE, AUDIO = PLACEHOLDER["image"], PLACEHOLDER["audio"]
RED, BLUE = (saved(picture(4, 4, seed)) for seed in (0, 1))
SOUND = encode_wav([0.0, 0.5])


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(address) -> dict:
    return {"type": "image_url", "image_url": {"url": address}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


ANSWER = {"role": "assistant", "content": "yes"}


def only(values: dict, kind: str = "conversation", folder=None):
    (example,) = examples_of([Record(values, "f:1", folder and str(folder))], kind, Counter())
    return example


def found(messages) -> tuple[list[str], list[bytes]]:
    """Return the contents, and the bytes of all media."""
    return [m["content"] for m in messages], [medium.read() for m in messages for medium in m.get("media", ())]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "media").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(RED)
    (tmp_path / "data" / "red.png").write_bytes(RED)
    (tmp_path / "data" / "media" / "blue 1.png").write_bytes(BLUE)
    (tmp_path / "data" / "a.wav").write_bytes(SOUND)
    return tmp_path / "data"


def test_parts_of_openai():
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "wav"}}
    asked = user(text("Is "), image(url(RED)), text(" like "), image(url(BLUE)), sound, text("?"))
    messages = only({"messages": [asked, ANSWER]}).messages
    assert found(messages) == ([f"Is {IMAGE} like {IMAGE}{AUDIO}?", "yes"], [RED, BLUE, SOUND])
    assert [medium.kind for medium in messages[0]["media"]] == ["image", "image", "audio"]


@pytest.mark.parametrize("address", ["red.png", "./red.png", "media/../red.png", "FILE"])
def test_paths_are_relative_to_the_data_file(folder, address, monkeypatch):
    monkeypatch.chdir("/")
    address = (folder / "red.png").as_uri() if address == "FILE" else address
    (folder / "x.jsonl").write_text(json.dumps({"messages": [user(image(address)), ANSWER]}))
    (example,) = examples_of(read_records(str(folder / "x.jsonl")), "conversation", Counter())
    assert found(example.messages) == ([IMAGE, "yes"], [RED])


def test_hugging_face_parts_and_columns(folder):
    asked = user({"type": "image"}, text(" and "), {"type": "image", "path": "red.png"}, {"type": "image"}, {"type": "audio"})
    values = {"messages": [asked, ANSWER], "images": [{"bytes": BLUE, "path": None}, "red.png"], "audio": "a.wav"}
    contents, media = found(only(values, folder=folder).messages)
    assert contents[0] == f"{IMAGE} and {IMAGE}{IMAGE}{AUDIO}" and media == [BLUE, RED, RED, SOUND]


def test_columns_that_no_part_asks_for_stand_first():
    values = {"question": "Which?", "answer": "This", "image": {"bytes": RED, "path": "a.png"}, "audios": [url(SOUND)]}
    assert found(only(values).messages) == ([f"{IMAGE}{AUDIO}Which?", "This"], [RED, SOUND])
    pair = only({"prompt": "Which?", "chosen": "a", "rejected": "b", "images": [{"bytes": RED}]}, "pair")
    assert found(pair.prompt) == ([f"{IMAGE}Which?"], [RED]) and "media" not in pair.chosen[0]
    task = only({"prompt": "Which?", "answer": "a", "images": [{"bytes": RED}]}, "task")
    assert found(task.prompt)[1] == [RED] and set(task.columns) == {"answer"}


def test_both_answers_of_a_pair_continue_after_the_prompt():
    prompt, again = [user({"type": "image"})], user(text("And "), {"type": "image"})
    one, other = [again, ANSWER], [again, ANSWER | {"content": "no"}]
    values = {"prompt": prompt, "chosen": one, "rejected": other, "images": [{"bytes": RED}, {"bytes": BLUE}]}
    pair = only(values, "pair")
    assert [found(part)[1] for part in (pair.prompt, pair.chosen, pair.rejected)] == [[RED], [BLUE], [BLUE]]


def test_parquet_of_hugging_face(folder):
    one = [user({"type": "image", "text": None}, text("?")), {"role": "assistant", "content": [text("a")]}]
    two = [user(text("two")), {"role": "assistant", "content": [text("b")]}]
    files = [{"bytes": None, "path": "media/blue 1.png"}, {"bytes": RED, "path": None}]
    rows = [{"messages": one, "images": [{"bytes": RED, "path": "red.png"}]}, {"messages": two, "images": files}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    examples = examples_of(read_records(str(folder / "x.parquet")), "conversation", Counter())
    assert [found(e.messages) for e in examples] == [([f"{IMAGE}?", "a"], [RED]), ([f"{IMAGE}{IMAGE}two", "b"], [BLUE, RED])]


def test_text_is_as_before():
    """Columns of other strings, empty columns, and placeholders in a text without media change nothing."""
    asked = {"role": "user", "content": f"a{IMAGE}b"}
    values = {"messages": [asked, ANSWER], "image": "https://example.com/a.png", "images": [], "audio": None}
    assert only(values).messages == [asked, ANSWER]
    assert only({"messages": [user(text("a"), {"text": "b"}), ANSWER]}).messages[0] == {"role": "user", "content": "ab"}


def test_a_text_beside_media_cannot_hold_a_placeholder():
    assert (
        found(only({"messages": [user(text(f"{IMAGE}{AUDIO}"), image(url(RED))), ANSWER]}).messages)[0][0]
        == f"\ufffd\ufffd{IMAGE}"
    )
    values = {"prompt": f"a{IMAGE}", "completion": "b", "image": {"bytes": RED}}
    assert found(only(values).messages)[0][0] == f"{IMAGE}a\ufffd"


def test_the_same_question_about_two_images_may_be_in_two_splits(folder):
    def number(*parts):
        return split_number(only({"messages": [user(*parts), ANSWER]}, folder=folder), 0)

    assert number(image(url(RED)), text("?")) == number(image(url(RED)), text(" ?"))
    assert len({number(image(address), text("?")) for address in (url(RED), url(BLUE), "red.png")}) == 3
    rows = [{"messages": [user(image(url(saved(picture(3, 3, n)))), text("?")), ANSWER]} for n in range(40)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = {
        split: len(list(read_examples(str(folder / "x.jsonl"), "conversation", split, valid_fraction=0.3, seed=0)))
        for split in ("train", "valid")
    }
    assert sum(counts.values()) == 40 and 3 < counts["valid"] < 25


@pytest.mark.parametrize(
    "part, words",
    [
        (image("https://example.com/a.png"), "is not fetched: download it"),
        (image("HTTP://example.com/a.png"), "is not fetched"),
        (image("ftp://example.com/a.png"), "is not fetched"),
        (image("gs://bucket/a.png"), "is not fetched"),
        (image("../secret.png"), "leads out of"),
        (image("media/../../secret.png"), "leads out of"),
        (image("/etc/passwd"), "leads out of"),
        (image("file:///etc/passwd"), "leads out of"),
        (image("file:..%2Fsecret.png"), "leads out of"),
        (image("file://host/share/a.png"), "is not fetched"),
        (image("file://[bad"), "is not fetched"),
        (image("link.png"), "leads out of"),
        (image("pipe"), "no file 'pipe'"),
        (image("media"), "no file 'media'"),
        (image("none.png"), "no file 'none.png'"),
        (image("\ud800.png"), "no file"),
        (image("a\0b.png"), r"no file 'a\\x00b.png'"),
        (image(""), "leads out of|no file"),
        (image("data:image/png,abc"), "no data: URL in base64"),
        (image("data:image/png;base64,@@@"), "is not base64"),
        (image("data:image/png;base64,abc"), "is not base64"),
        (image(5), "no url in it"),
        ({"type": "image_url"}, "no url in it"),
        ({"type": "image"}, "no file for it in the part"),
        ({"type": "image", "image": 5}, "a file is int"),
        ({"type": "input_audio"}, "no data in it"),
        ({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}, "is not base64"),
        ({"type": "video", "video": "a.mp4"}, "is of type 'video'"),
        ({"type": "file", "file": {"file_id": "a"}}, "is of type 'file'"),
    ],
)
def test_a_part_that_is_refused_is_one_line(folder, part, words):
    os.symlink("../secret.png", folder / "link.png")
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match=f"^f:1: message 1, part 2.*({words})") as error:
        only({"messages": [user(text("a"), part), ANSWER]}, folder=folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_paths_without_a_folder_and_bad_columns_are_refused():
    for values, words in (
        ({"messages": [user(image("red.png")), ANSWER]}, "only files in data: URLs"),
        (
            {"messages": [user({"type": "image"}), ANSWER], "images": [{"bytes": RED}, {"bytes": RED}]},
            "1 parts of type image .* hold 2",
        ),
        ({"messages": [user({"type": "image"}, {"type": "image"}), ANSWER], "image": {"bytes": RED}}, "no file for it"),
        ({"messages": [ANSWER], "image": {"bytes": RED}}, "no message of the user"),
        ({"messages": [user(text("a")), ANSWER], "image": {"bytes": None, "path": None}}, "a file is NoneType"),
        ({"messages": [user(*[image(url(RED))] * (MAX_MEDIA + 1)), ANSWER]}, f"more than {MAX_MEDIA} images"),
    ):
        with pytest.raises(UserError, match=f"^f:1.*{words}"):
            only(values)


def test_a_large_file_is_refused_before_it_is_decoded(folder, monkeypatch):
    from data.media import parts

    monkeypatch.setitem(parts.MAX_BYTES, "image", 20)
    with pytest.raises(UserError, match="characters, and it may have 20 bytes"):
        only({"messages": [user(image(url(RED))), ANSWER]})
    with pytest.raises(UserError, match="bytes, and it may have 20"):
        only({"prompt": "a", "completion": "b", "image": {"bytes": RED}})
    (medium,) = only({"messages": [user(image("red.png")), ANSWER]}, folder=folder).messages[0]["media"]
    with pytest.raises(UserError, match="at most 20 are read"):
        medium.read()


def media_messages(items, folder=None):
    return resolved([messages_of(items, "messages", media=True)], {}, folder, "messages")[0]


def test_a_request_has_media_in_data_urls_only(folder):
    asked = user(text("a"), image(url(RED)))
    assert found(media_messages([asked]))[1] == [RED]
    with pytest.raises(UserError, match="^messages: message 1, part 1: 'red.png' is not fetched, and only files in data: URLs"):
        media_messages([user(image("red.png"))])
    assert found(media_messages([user(image("red.png"))], str(folder)))[1] == [RED]


def test_those_who_read_text_only_refuse_media():
    with pytest.raises(UserError, match="message 1 has content that is not only text"):
        messages_of([user(image(url(RED)))], "messages")
