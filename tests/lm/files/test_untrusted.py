"""What a stranger's text may not do to a terminal or a page, and what their files may not do to the reader."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.files import untrusted as strangers
from lm.reports.page import visible
from tests.lm import attacks
from tests.lm import hostile_models as hostile

ROOT = Path(__file__).parents[3]


def test_characters_that_act_are_spelt_out():
    assert strangers.shown("a\x1b[2J\r\n\u202eb\u2066\x9b\x00\udcff") == "a\\x1b[2J\\r\\n\\u202eb\\u2066\\x9b\\x00\\udcff"
    ordinary = "Grüße, 世界 🙂 שלום é"
    assert strangers.shown(ordinary) == ordinary
    assert visible("a\n\tb\u202ec\x1b") == "a\n\tb\\u202ec\\x1b" and visible(7) == 7


def test_a_value_in_an_error_is_short():
    assert strangers.short("a" * 10**7) == "'" + "a" * 79 + "…"
    assert strangers.short(10**5000) == "a int" and strangers.short([1] * 10**7).endswith("…")


def test_json_is_bounded():
    assert strangers.parsed('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text, why in (
        ("[" * 10**5, "nested"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ("[0,0,0]", "at most 2"),
        ("{", "Expecting"),
        (b"\xff", "utf-8"),
        ("9" * 5000, "digits"),
    ):
        with pytest.raises(ValueError, match=why):
            strangers.parsed(text, 2 if text == "[0,0,0]" else 10**6)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert strangers.content(tmp_path / "a", 3) == b"abc"
    os.mkfifo(tmp_path / "pipe")
    for path, most in ((tmp_path / "a", 2), (tmp_path / "pipe", 9), (Path("/dev/zero"), 9)):
        with pytest.raises(UserError, match=str(path)):
            strangers.content(path, most)
    with pytest.raises(IsADirectoryError):
        strangers.content(tmp_path)
    with pytest.raises(FileNotFoundError):
        strangers.content(tmp_path / "b")


def test_files_lie_in_their_folder_or_in_the_cache_of_the_hub(tmp_path):
    hub = tmp_path / "models--a--b"
    folder, blobs = hub / "snapshots" / "1f2e", hub / "blobs"
    for place in (folder, blobs, tmp_path / "other"):
        place.mkdir(parents=True)
        (place / "file").write_text("a")
    (folder / "good").symlink_to("../../blobs/file")
    (folder / "inner").symlink_to("file")
    (folder / "bad").symlink_to(tmp_path / "other" / "file")
    (folder / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to(folder)
    for name in ("file", "good", "inner"):
        strangers.check_inside(folder, folder / name)
        strangers.check_inside(tmp_path / "alias", tmp_path / "alias" / name)
    for name in ("bad", "../1f2e/../../refs", "/etc/passwd", "../../../other/file"):
        with pytest.raises(UserError, match="leads out of"):
            strangers.check_inside(folder, folder / name)
    assert [strangers.is_plain(name) for name in ("a", "a/b.c", "..", "a/../b", "/a", "", "a//b", 7, "a\0")] == [True] * 2 + [
        False
    ] * 7


def test_patterns_that_may_not_end_are_refused():
    for good in (".*", r"attention\..*", r".*\.(gate|up)\.weight", r"layers\.[0-9]+\.", "(a|b)?c", "^x{2,3}$", "a" * 9):
        strangers.check_pattern(good)
    for bad in (
        "(a+)+$",
        "(a|a)*b",
        r"(\w+\.?)+!",
        "((a*)*)*",
        "(.*)(.*)(.*)(.*)(.*)(.*)(.*)!",
        "(",
        r"(a)\1",
        7,
        "a{99999999999}",
    ):
        with pytest.raises(ValueError):
            strangers.check_pattern(bad)


VERBS = {
    "a huge vocabulary": (hostile.key("vocab_size", 10**12), "vocab_size=1000000000000"),
    "a name with escapes": (hostile.key("model_type", attacks.ESCAPES), "model_type='\\x1b[2J\\r\\u202e"),
    "a key with escapes": (attacks.text("config.json", '{"model_type": 1, "model_type": 2}'), "model_type"),
    "a template that does not end": (
        attacks.text("chat_template.jinja", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "the template is stopped",
    ),
    "a template that shows escapes": (
        attacks.text("chat_template.jinja", "{{ raise_exception('\\x1b[2J\u202e') }}"),
        "the template says: \\x1b[2J\\u202e",
    ),
    "a large header": (hostile.SAFETENSORS["large header"], "header is longer than"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_ends_in_one_line(name, tmp_path):
    """In the memory that JAX takes and 1 GiB, and without a character that acts on the terminal."""
    attack, words = VERBS[name]
    attack(hostile.model(tmp_path / "model"))
    limits = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (16 << 30,) * 2); sys.argv[0] = 'lm.generate'; "
    )
    command = [sys.executable, "-c", limits + "runpy.run_module('lm.generate', run_name='__main__', alter_sys=True)"]
    flags = [f"--checkpoint={tmp_path / 'model'}", "--prompt=a", "--chat"]
    began = time.monotonic()
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert time.monotonic() - began < 300
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, done.stderr
    assert strangers.shown(done.stderr.rstrip("\n")) == done.stderr.rstrip("\n")
