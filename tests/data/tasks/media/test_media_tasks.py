"""Tasks with images and sounds: answers are right by another way of working them out, and nothing of valid is in train."""

import base64
import collections
import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from data import tasks
from data.chat.conversations import examples_of
from data.chat.records import Record, read_builtin, read_records
from data.media import audio, images, spectrograms
from data.tasks import CORPORA, TASKS
from data.tasks.answers import final_answer
from data.tasks.media.commands import HELD_OUT_SPEAKERS, WORDS
from data.tasks.media.scenes import ABSENT, COLOURS, COLUMNS, HELD_OUT, ROWS, SEEN, SHAPES
from data.tasks.splits import SPLITS
from lm.errors import UserError
from tests.data.tasks.test_tasks import rewards_of, some

NAMES = {"scenes": "images", "digits": "images", "commands": "audios"}
ALL = "colour,count,place,neighbour,shape,caption"
COUNT = {"scenes": 100, "digits": 100, "commands": 24}


def media(row: dict) -> bytes:
    (address,) = row.get("images") or row["audios"]
    return base64.b64decode(address.partition(",")[2])


def prompts(rows: list[dict]) -> set:
    return {(row["prompt"], media(row)) for row in rows}


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, list[dict]]:
    """The first three records of each task and split that another process makes."""
    made = f"{{name: [*some(name, count=3), *some(name, 'valid', count=3)] for name in {list(NAMES)}}}"
    code = f"from tests.data.tasks.test_tasks import *; print(json.dumps({made}))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", NAMES)
def test_records_depend_on_split_seed_and_options_alone_and_valid_is_not_in_train(name, elsewhere):
    count = COUNT[name]
    train, valid = some(name, count=count), some(name, "valid", count=count // 4)
    assert train == some(name, count=count) and valid == some(name, "valid", count=count // 4)
    assert train[:9] != some(name, seed=1, count=9)
    assert len(prompts(valid)) == len(valid) == count // 4
    assert not {media(row) for row in valid} & {media(row) for row in [*train, *some(name, seed=3, count=count)]}
    assert elsewhere[name] == [*train[:3], *valid[:3]]


@pytest.mark.parametrize("name", NAMES)
def test_records_have_what_readers_and_verifiers_want(name):
    rows = some(name, count=COUNT[name] // 4)
    for row in rows:
        assert row["task"] == name and row["rejected"] not in ("", row["completion"]) and len(row[NAMES[name]]) == 1
    assert set(rewards_of("answer=1", rows, [row["completion"] for row in rows])) == {1.0}
    assert set(rewards_of("answer=1", rows, [row["rejected"] for row in rows])) == {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_records_become_conversations_with_media_also_from_a_file(name, tmp_path):
    rows = list(itertools.islice(read_builtin(f"builtin:{name}", "valid", 0), 5))
    out = tmp_path / "rows.jsonl"
    subprocess.run([sys.executable, "-m", "data.tasks", name, "--split=valid", "--count=5", f"--out={out}"], check=True)
    for records in (rows, read_records(str(out))):
        talks = list(examples_of(records, "conversation", Counter()))
        assert [talk.messages[1]["content"] for talk in talks] == [row.values["answer"] for row in rows]
        assert [talk.messages[0]["media"][0].read() for talk in talks] == [media(row.values) for row in rows]
    (task,) = examples_of([Record(rows[0].values, "f:1")], "task", Counter())
    assert task.prompt[0]["media"] and not {"images", "audios"} & set(task.columns)


def things(row: dict) -> list[tuple[str, str, int, int]]:
    """Return (colour, shape, row, column) of each thing, found in the pixels."""
    pixels, found = images.decode(media(row), "x"), []
    for colour, values in COLOURS.items():
        mask = (pixels == values).all(axis=-1)
        labels, _ = ndimage.label(mask)
        for n, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            one = labels[rows, columns] == n
            full = one.mean()
            if full > 0.92:
                shape = "square"
            elif full > 0.67:
                shape = "circle"
            else:
                shape = "triangle" if one[-2].mean() > 0.7 else "cross"
            places = [int(3 * (part.start + part.stop) / 2 / len(mask)) for part in (rows, columns)]
            found.append((colour, shape, *places))
    return found


def answer(question: str, scene: list[tuple[str, str, int, int]]) -> str:
    """Answer a question about a scene; it fails if there is more than one answer."""
    words = re.findall(r"\w+", question.lower())
    if "image" in words:
        told = sorted((down, right, f"{colour} {shape}") for colour, shape, down, right in scene)
        return ", ".join(f"{ROWS[down]} {COLUMNS[right]}: {name}" for down, right, name in told)
    if at := re.search(rf"at the ({'|'.join(ROWS)}) ({'|'.join(COLUMNS)})\b", question):
        (there,) = (thing for thing in scene if (ROWS[thing[2]], COLUMNS[thing[3]]) == at.groups())
        return there[0] if "colour" in words else there[1]
    shape = next(s for s in SHAPES if any(word in (s, f"{s}s", f"{s}es") for word in words))
    named = [thing for thing in scene if thing[1] == shape and (thing[0] in words or not set(words) & set(COLOURS))]
    if "many" in words or "count" in words:
        return str(len(named))
    (thing,) = named
    if "colour" in words:
        return thing[0]
    if "where" in words or "place" in words:
        return f"{ROWS[thing[2]]} {COLUMNS[thing[3]]}"
    sides = {"left": lambda o: o[3] < thing[3], "right": lambda o: o[3] > thing[3], "above": lambda o: o[2] < thing[2]}
    sides["below"] = lambda o: o[2] > thing[2]
    (side,) = (side for side in sides if side in words)
    (there,) = filter(sides[side], scene)
    return f"{there[0]} {there[1]}"


def test_scenes_ask_the_kinds_that_are_named():
    assert {row["question"] for row in some("scenes", kinds="place,count")} == {"place", "count"}
    with pytest.raises(UserError, match="'place,size': 'size' is none of colour, count, place, neighbour, shape, caption"):
        some("scenes", kinds="place,size")


@pytest.mark.parametrize("options", [{}, {"size": 96, "shapes": 8, "kinds": ALL}, {"size": 200, "shapes": 2, "kinds": ALL}])
def test_scenes_are_drawn_as_their_answers_say(options):
    rows = some("scenes", count=60, **options)
    assert {row["question"] for row in rows} == set(options.get("kinds", "colour,count,place,neighbour").split(","))
    for row in rows:
        assert answer(row["prompt"], things(row)) == row["answer"]
        assert images.decode(media(row), "x").shape == (options.get("size", 64),) * 2 + (3,)


def test_held_out_pairs_are_in_no_image_and_no_text_of_train():
    pairs = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    assert len(HELD_OUT) == len(SHAPES) and {pair[1] for pair in SEEN} == set(SHAPES)
    assert {pair[0] for pair in SEEN} == set(COLOURS)
    for options in ({}, {"new": "pairs"}):
        for row in some("scenes", count=150, **options):
            assert not {thing[:2] for thing in things(row)} & HELD_OUT
            assert not any(pair in " ".join((row["prompt"], row["answer"], row["rejected"])) for pair in pairs)
    assert not any({thing[:2] for thing in things(row)} & HELD_OUT for row in some("scenes", "valid", count=150))
    for row in some("scenes", "valid", count=150, new="pairs"):
        scene = things(row)
        assert sum(thing[:2] in HELD_OUT for thing in scene) == 1 and answer(row["prompt"], scene) == row["answer"]
        if row["question"] in ("place", "neighbour"):
            assert any(pair in row["prompt"] for pair in pairs)


def told(text: str) -> list[tuple[str, str, int, int]]:
    """Return the things that a caption names."""
    found = re.findall(r"(\w+) (\w+): (\w+) (\w+)", text)
    return [(colour, shape, ROWS.index(down), COLUMNS.index(right)) for down, right, colour, shape in found]


def test_scenes_are_told_in_words_with_right_answers_and_valid_is_not_in_train():
    rows = {split: itertools.islice(CORPORA["scenes_text"](split, 0, point=1), 400) for split in SPLITS}
    texts = {split: [row["text"] for row in rows[split]] for split in SPLITS}
    for text in itertools.chain(*texts.values()):
        caption, *asked = text.split("\n")
        scene = told(caption)
        assert caption == f"{answer('Describe the image.', scene)}." and len(asked) <= 3
        assert all(answer(line, scene) == final_answer(re.split(r"[?.] ?", line)[1]) for line in asked)
        assert all(thing[:2] not in HELD_OUT and ABSENT[thing[:2]] != thing[2:] for thing in scene)
    train, valid = ({text.split("\n")[0] for text in texts[split]} for split in SPLITS)
    assert not train & valid and len(valid) > 300
    assert not train & {f"{answer('Describe the image.', things(row))}." for row in some("scenes", "valid", count=400)}
    for wrong in ({"shapes": 1}, {"kinds": "size"}, {"point": 2}):
        with pytest.raises(UserError, match="^scenes_text: "):
            CORPORA["scenes_text"]("train", 0, **wrong)


def test_a_count_can_begin_with_the_places():
    for row in some("scenes", kinds="count", point=1, count=150):
        plain = answer(row["prompt"], things(row))
        *places, last = re.split(", | ?#### ", row["completion"])
        assert row["answer"] == final_answer(row["completion"]) == last == plain != final_answer(row["rejected"])
        where = [(ROWS.index(down), COLUMNS.index(right)) for down, right in (place.split() for place in places if place)]
        assert where == sorted(thing[2:] for thing in things(row) if thing[1] in row["prompt"])
    assert {row["completion"] for row in some("scenes", kinds="count")} <= set("01234")


def test_each_pair_is_in_one_place_only_among_the_held_out_questions():
    train = {thing for row in some("scenes", count=500, shapes=9) for thing in things(row)}
    new = collections.defaultdict(set)
    for row in some("scenes", "valid", count=500, new="things"):
        scene = things(row)
        (thing,) = {thing for thing in scene if ABSENT[thing[:2]] == thing[2:]}
        assert thing not in train and answer(row["prompt"], scene) == row["answer"]
        new[thing[:2]].add(thing[2:])
    assert {pair: {where} for pair, where in ABSENT.items()} == new and len(train) == 8 * len(SEEN)


def test_a_scene_cannot_be_answered_without_its_image():
    """The most frequent answer to each question is wrong more often than right."""
    rows = some("scenes", count=3000)
    answers = collections.defaultdict(Counter)
    for row in rows:
        answers[row["prompt"]][row["answer"]] += 1
    assert sum(max(counts.values()) for counts in answers.values()) / len(rows) < 0.45


def test_digits_are_the_scans():
    scans = {}
    for scan, label in zip(load_digits().images, load_digits().target):
        scans[np.round(255 - scan * (255 / 16)).astype(np.uint8).tobytes()] = str(label)
    for row in [*some("digits", size=16), *some("digits", "valid", count=100, size=16)]:
        pixels = images.decode(media(row), "x")
        assert pixels.shape == (16, 16, 3) and np.array_equal(pixels[::2, ::2], pixels[1::2, 1::2])
        assert scans[pixels[::2, ::2, 0].tobytes()] == row["answer"]
    assert 120 < len({media(row) for row in some("digits", "valid", count=2000, valid=10_000)}) < 240


def test_held_out_voices_are_never_in_train():
    def speakers(split, count, **options):
        return {row["voice"].partition("+")[2] for row in some("commands", split, count=count, **options)}

    assert speakers("valid", 30, voices="heldout") == set(HELD_OUT_SPEAKERS)
    seen = speakers("train", 20) | speakers("train", 20, voices="heldout") | speakers("valid", 20)
    assert not set(HELD_OUT_SPEAKERS) & seen


def test_commands_have_their_length_and_noise():
    for options in ({"seconds": 1.5}, {"seconds": 1.0, "noise": 0.01}):
        for row in some("commands", count=12, **options):
            sound = audio.decode(media(row), "x")
            assert len(sound) == options["seconds"] * audio.RATE and np.abs(sound).max() > 0.1
            assert (np.abs(sound) > 1e-3).mean() > (0.8 if "noise" in options else 0.1)


def test_warped_commands_are_the_same_words_longer_or_shorter():
    """Only the first record of a seed: the factor is drawn after its word and voice, and before all that follows."""

    def spoken(seed, **options):
        (row,) = itertools.islice(tasks.task("commands", "train", seed, options), 1)
        loud = np.flatnonzero(np.abs(audio.decode(media(row), "x")) > 0.01)
        return (row["answer"], row["voice"]), loud[-1] - loud[0] + 1

    ratios = []
    for seed in range(12):
        (plain, length), (warped, other) = spoken(seed), spoken(seed, warp="0.3")
        assert plain == warped
        ratios.append(other / length)
    assert 1 / 1.35 < min(ratios) < 0.95 and 1.05 < max(ratios) < 1 / 0.65


@pytest.mark.slow
def test_words_can_be_told_apart_by_their_sound():
    """A linear model of the spectrogram around the loudest second tells ten words better than chance, in new voices too."""

    def read(split, count, **options):
        rows = some("commands", split, count=count, **options)
        found = []
        for row in rows:
            mel = spectrograms.log_mel(np.pad(audio.decode(media(row), "x"), (0, audio.RATE)), 40)
            begin = int(np.argmax(mel.max(axis=1) > mel.max() - 1))
            found.append(mel[begin : begin + 60].reshape(15, 4, 40).mean(axis=1).ravel())
        return np.stack(found), [WORDS.index(row["answer"]) for row in rows]

    model = LogisticRegression(max_iter=300).fit(*read("train", 800))
    assert model.score(*read("valid", 200)) > 0.8
    assert model.score(*read("valid", 200, voices="heldout")) > 0.6


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("scenes", {"point": "2"}, "point in 0…1"),
        ("scenes", {"new": "shapes"}, "none of scenes, things, pairs"),
        ("scenes", {"size": "8"}, "size in 24…1024"),
        ("scenes", {"shapes": "1"}, "shapes in 2…9"),
        ("digits", {"size": "12"}, "multiple of 8"),
        ("commands", {"voices": "mine"}, "neither seen nor heldout"),
        ("commands", {"seconds": "0.1"}, "seconds in 0.8…30"),
        ("commands", {"noise": "nan"}, "noise in 0…1"),
        ("commands", {"warp": "0.6"}, "warp in 0…0.5"),
        ("commands", {"voice": "m1"}, "nearest is 'voices'"),
    ],
)
def test_wrong_options_say_so(name, options, words):
    with pytest.raises(UserError, match=words):
        next(tasks.task(name, "train", 0, options))


@pytest.mark.parametrize("name, missing, package", [
    ("scenes", "PIL", "PIL"), ("digits", "sklearn", "sklearn"), ("commands", "espeakng_loader", "espeakng_loader"),
])  # fmt: skip
def test_a_missing_library_is_one_line(name, missing, package):
    code = f"import sys; sys.modules['{missing}'] = None\nfrom data.tasks import TASKS\nnext(TASKS['{name}']('train', 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": ""})
    assert f"needs the package {package}" in done.stderr or f"the package {package}" in done.stderr
    assert "requirements/media.txt" in done.stderr.splitlines()[-1]


def test_the_list_of_tasks_names_them():
    assert set(NAMES) < set(TASKS)
