"""Files are written whole: synced to the disk before they replace what was there."""

import os

import pytest

from lm.files import saving


def test_the_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.json", []
    synced = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(path.exists()), synced(file)))
    saving.write_json(path, {"a": 1})
    assert seen == [False, True]  # the file, then its name in the folder
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_an_error_leaves_the_file_before(tmp_path):
    saving.write(tmp_path / "a", "before")
    with pytest.raises(ZeroDivisionError), saving.replacing(tmp_path / "a") as file:
        file.write("after")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
