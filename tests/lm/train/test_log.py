"""The lines of metrics.jsonl that a resumed run keeps."""

import os

import pytest

from lm.errors import UserError
from lm.train.events.step_log import rewind
from lm.train.history import json_lines

KEPT = ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.5}', '{"step": 2, "valid_loss": 1.7}', '{"step": 4, "loss": 1.0}']
DROPPED = ['{"step": 4, "valid_loss": 1.1}', '{"step": 5, "loss": 0.9}', '{"step": "x"}', "[1]", "\0\0", '{"st']


def test_later_equal_and_wrong_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*KEPT, *DROPPED, *KEPT[1:], '{"step": 4, "lo']))
    assert rewind(path, 4) == {1, 2, 4}
    assert path.read_text().splitlines() == KEPT
    assert rewind(tmp_path / "no.jsonl", 4) == set()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    for read in (lambda: rewind(tmp_path / "metrics.jsonl", 4), lambda: json_lines(tmp_path / "metrics.jsonl")):
        with pytest.raises(UserError, match="is no regular file but a pipe"):
            read()
