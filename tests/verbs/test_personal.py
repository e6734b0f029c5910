"""python -m lm.personal, run as a user does: with a model that answers at random, without a network, and with mistakes."""

import json
import sys

import pytest

from lm.convert.to_workdir import write_workdir
from tests.lm.evals import tiny_models
from tests.lm.personal.stores import ENVIRONMENT, everything_on_disk
from tests.verbs import runs

MODULE = (sys.executable, "-m", "lm.personal")
WATCHED = (sys.executable, "-m", "tests.lm.personal.watched")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    made = tiny_models.model(vocab_size=tiny_models.tokenizer(folder).vocab_size, max_positions=2048).config
    write_workdir(folder, made, tiny_models.parameters(made))
    return folder


def personal(*arguments: object, before: tuple = MODULE, text: str = "", **variables: str):
    return runs.run([*map(str, before), *map(str, arguments)], stdin=text, **ENVIRONMENT | variables)


def test_a_life_of_a_store_without_a_network(model, tmp_path):
    def said(*arguments, **options) -> str:
        done = personal(*arguments, before=(*WATCHED, tmp_path / "log"), **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    home, letters = f"--home={tmp_path / 'home'}", tmp_path / "letters"
    (letters / "old").mkdir(parents=True)
    (letters / "old" / "aunt.txt").write_text("Aunt Zinnia breeds alpacas in Umbria.")
    (letters / "talk.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    assert said("add", home, "The cabin key is under the blue pot.", letters).endswith("stored 3 of 3 items\n")
    assert said("add", home, "-", text="abc def\n").endswith("stored 1 of 1 items\n")
    assert said("add", home, letters).endswith("stored 0 of 2 items, 2 were there already\n")
    listed = said("list", home).splitlines()
    assert [line.split()[2] for line in listed] == ["note", "file", "exchange", "note"]
    assert said("search", home, "who breeds alpacas?").startswith(f"[1] {listed[1].split()[0]}")
    ask = ("ask", home, f"--model={model}", "--max_new_tokens=4", "Where is the key of the cabin?")
    answer = said(*ask, "--keep", text="never read")
    assert answer and said("status", home).splitlines()[0].startswith(f"{tmp_path / 'home'}: 2 notes, 1 file, 2 exchanges")
    train = ("--epochs=1", "--batch=2", "--rank=2")
    assert "trained an adapter: 5 items, 3 updates" in said("train", home, *train)
    assert "adapter: 5 items, 3 updates, no differential privacy" in said("status", home)
    done = said("forget", home, listed[1].split()[0][:6])
    assert "forgot 1 of 5 items" in done and "trained an adapter: 4 items, 2 updates" in done
    # The settings are those of the last training.
    assert said("train", home).startswith("the adapter is of these items and settings already: 4 items, 2 updates")
    assert said("search", home, "who breeds alpacas?") == "nothing is found\n"
    out = tmp_path / "out.jsonl"
    assert "wrote 4 items" in said("export", home, out) and out.stat().st_mode & 0o077 == 0
    other = f"--home={tmp_path / 'other'}"
    assert said("add", other, out).endswith("stored 4 of 4 items\n")
    assert [line.split()[0] for line in said("list", other).splitlines()] == [
        line.split()[0] for line in said("list", home).splitlines()
    ]
    disk = everything_on_disk(tmp_path / "home")
    assert all(word not in disk for word in (b"cabin", b"aunt", b"alpaca", str(model).encode()))
    assert personal("wipe", home).returncode == 2 and "all files are deleted" in said("wipe", home, "--yes")
    assert not (tmp_path / "home").exists()
    # The pairs of sockets with which an event loop wakes itself lead nowhere.
    assert set((tmp_path / "log").read_text().splitlines()) <= {"socket.__new__ 1 1 0"}


def test_a_folder_with_a_file_that_cannot_be_read_gives_the_others(tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "good.txt").write_text("Aunt Zinnia breeds alpacas.")
    (folder / "empty.md").touch()
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    done = personal("add", f"--home={tmp_path / 'home'}", folder)
    assert done.returncode == 0 and done.stdout.endswith("stored 1 of 1 items\n")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == 2 * ["left out"]
    assert "empty.md is empty" in done.stderr and "latin.txt is no UTF-8 text" in done.stderr
    (folder / "good.txt").unlink()
    done = personal("add", f"--home={tmp_path / 'other'}", folder)
    assert done.returncode == 2 and "no text file that can be read" in done.stderr and not (tmp_path / "other").exists()


def test_a_note_on_the_command_line_stays_in_the_history_and_others_do_not(tmp_path):
    home, file = f"--home={tmp_path / 'home'}", tmp_path / "note.txt"
    file.write_text("gamma")
    for argument, text, words in (
        ("alpha beta", "", "stays in the shell's history; add - reads"),
        ("-", "delta", ""),
        (file, "", ""),
    ):
        done = personal("add", home, argument, text=text)
        assert done.returncode == 0 and done.stdout.endswith("stored 1 of 1 items\n")
        assert words in done.stderr and done.stderr.count("\n") == bool(words)
    assert "history" in personal("--help").stdout


def test_mistakes(tmp_path):
    home = f"--home={tmp_path / 'home'}"
    new = f"--home={tmp_path / 'new'}"
    assert personal("add", home, "alpha beta").returncode == 0
    for arguments, variables, words in (
        ((), {}, "commands are add, list, search"),
        (("serach", home), {}, "no command 'serach'; did you mean search?"),
        (("list",), {}, "--home is missing"),
        (("list", new), {}, "holds no store"),
        (("list", home), {"LMCRAFT_PASSPHRASE": "another passphrase"}, "wrong key for"),
        (("add", new, "alpha"), {"LMCRAFT_PASSPHRASE": "short"}, "too short"),
        (("add", new, "no/such/file.txt"), {}, "no such file or folder"),
        (("add", new), {}, "add what?"),
        (("list", home, "more"), {}, "list takes no 'more'"),
        (("list", home, "--passphrase_file=/none"), {}, "--passphrase_file=/none: No such file"),
        (("forget", home, "zzzz"), {}, "zzzz is no id of an item"),
        (("forget", home), {}, "forget what?"),
        (("ask", home, "why?"), {}, "--model is missing"),
        (("ask", home, "--model=gs://bucket/model", "why?"), {}, "uses no network"),
        (("train", home, f"--model={tmp_path}"), {}, "no tokenizer"),
        (("export", home, "here"), {}, "ends in .jsonl"),
        (("wipe", new, "--yes"), {}, "holds no store"),
        (("list", home, "--passphrse_file=a"), {}, "did you mean --passphrase_file?"),
    ):
        done = personal(*arguments, **variables)
        assert done.returncode == 2 and done.stdout == "", (arguments, done)
        assert words in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)
    assert not (tmp_path / "new").exists()
    told = personal("--help").stdout
    assert all(word in told for word in ("forget ITEM", "--epsilon", "--passphrase_file"))
