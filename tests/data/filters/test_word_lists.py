"""Word lists: counted at the right places, equal to C4's expression, and read from files. The entries here are harmless."""

import random
import re

import numpy as np
import pytest

from data.filters.word_lists import bad_words, occurrences, read_word_lists, word_list
from lm.errors import UserError

ENGLISH = word_list(["Turnip", "rotten egg", "a&b", "b", "@home", "", "  "], "en")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A turnip, a TURNIP.", {"turnip": 2}),
        ("turnips and returnip", {}),
        ("a rotten  egg\nand a rotten\negg", {"rotten egg": 2}),
        ("rotten eggs", {}),
        ("we sell a&b and b", {"b": 2, "a&b": 1}),
        ("stay @home, not x@home", {"@home": 1}),
        ("turnip_x", {}),
        ("", {}),
    ],
)
def test_entries_are_counted_between_boundaries(text, expected):
    assert occurrences(text, ENGLISH) == expected


def test_agrees_with_the_expression_of_c4():
    draw = random.Random(0)
    entries = ["turnip", "rotten egg", "a&b", "b", "@home", "été", "हिन्दी"]
    expression = re.compile(r"(?:\W|^)({})(?:\W|$)".format("|".join(map(re.escape, entries))))
    own = word_list(entries, "en")
    pieces = [*entries, " ", ".", "s", "x", "rotten", "egg", "É", "\n", "&", "_", "1"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(2000)]
    expected = [expression.search(text.lower()) is not None for text in texts]
    assert any(expected) and [bool(occurrences(text, own)) for text in texts] == expected


def test_languages_without_spaces_have_no_boundaries():
    assert occurrences("これは大根です大根", word_list(["大根", "グロ"], "ja")) == {"大根": 2}
    assert occurrences("グロ", word_list(["大根", "グロ"], "ja")) == {}
    assert occurrences("xturnipx", word_list(["turnip"], "zh")) == {"turnip": 1}


def test_columns_use_the_list_of_each_language():
    lists = {"en": ENGLISH, "pt": word_list(["nabo"], "pt")}
    columns = bad_words(["turnip turnip b", "nabo", "turnip", "nabo"], ["en", "pt-BR", "pt", "fr"], lists)
    assert columns["bad_words"].tolist() == [3, 1, 0, 0] and columns["bad_words"].dtype == np.int32
    assert columns["bad_words_distinct"].tolist() == [2, 1, 0, 0]
    assert columns["bad_words_listed"].tolist() == [True, True, True, False]
    assert all(len(column) == 0 for column in bad_words([], [], lists).values())


def test_lists_are_read_from_a_folder(tmp_path):
    (tmp_path / "en").write_text("turnip\nrotten egg\n", encoding="utf-8")
    (tmp_path / "de.txt").write_text("\ufeffRübe\r\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    lists = read_word_lists(tmp_path)
    assert sorted(lists) == ["de", "en"] and lists["de"].words == {"rübe"}
    with pytest.raises(UserError, match="holds no word list"):
        read_word_lists(tmp_path / "nothing")
    (tmp_path / "fr").write_bytes(b"\xff")
    with pytest.raises(UserError, match="cannot read this word list"):
        read_word_lists(tmp_path)
