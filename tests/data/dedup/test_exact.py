"""Exact duplicates of every kind: against a dictionary in memory, on planted ones, over parts."""

import random

import numpy as np
import pytest

from data.dedup import exact, pieces, tables
from data.dedup.pieces import KINDS, SENTENCES, Unit
from lm.errors import UserError
from tests.data.dedup.corpus import prose, sources
from tests.data.filters.plain_words import plain_words


def removed(folder, texts, unit, scores=None, numbers=None, parts=1, batch=20):
    """Return (counts, table path) of texts that are spread over parts."""
    numbers = np.arange(len(texts)) if numbers is None else numbers
    scores = np.zeros(len(texts)) if scores is None else np.asarray(scores, float)
    for part in range(parts):
        own = np.arange(part, len(texts), parts)
        with exact.new_part(folder / f"part{part}", unit) as writer:
            for at in range(0, len(own), batch):
                some = own[at : at + batch]
                writer.add([texts[i] for i in some], numbers[some], scores[some])
    counts = exact.find([folder / f"part{part}" for part in range(parts)], folder / "removed")
    return counts, folder / "removed"


def plainly(texts, unit, scores) -> list[tuple[int, int, int, int]]:
    """Return (number, start, end, number of the document that keeps it) of pieces to remove: a dictionary of whole contents."""
    seen: dict = {}
    for number in sorted(range(len(texts)), key=lambda i: (-scores[i], i)):
        text = texts[number]
        if unit.kind == "window":
            own = plain_words(text)
            runs = [own[i : i + unit.window] for i in range(len(own) - unit.window + 1)]
            found = [(run[0][1], run[-1][2], tuple(word for word, *_ in run)) for run in runs]
        else:
            spans = KINDS[unit.kind](text)
            found = [(start, end, pieces.NORMALISED[unit.normalise](text[start:end].strip())) for start, end in spans]
            found = [one for one in found if len(one[2]) >= unit.min_characters]
        for start, end, content in found:
            seen.setdefault(content, []).append((number, start, end))
    return sorted((*place, places[0][0]) for places in seen.values() for place in places[1:])


def unpacked(path) -> list[tuple[int, int, int, int]]:
    return [(number, span >> 32, span & 0xFFFFFFFF, kept) for number, span, kept in tables.read(path, 3).tolist()]


UNITS = [
    Unit("document"),
    Unit("document", "ccnet"),
    Unit("paragraph", "case"),
    Unit("line", "none"),
    Unit("line", min_characters=20),
    Unit("sentences"),
    Unit("window", window=50),
    Unit("window", window=7),
]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.kind} {unit.normalise} {unit.window}")
def test_what_goes_is_what_a_dictionary_says(tmp_path, monkeypatch, unit):
    texts = [text[:4000] for text in sources(40)] + prose()[:30]
    texts += [
        texts[3].upper(),
        "\n\n".join(prose()[4:6]),
        "  " + texts[7],
        "",
        " \n ",
        texts[9].replace("1", "2").replace(",", ";"),
    ]
    texts += [prose()[40] + "\n" + prose()[20] + prose()[41]]
    draws = random.Random(0)
    scores = [draws.randrange(3) for _ in texts]
    expected = plainly(texts, unit, scores)
    assert expected
    for parts, batch, small in ((1, 100, False), (3, 1, True), (2, 9, False)):
        monkeypatch.setattr(tables, "BUFFER_ROWS", 500 if small else 1 << 20)
        monkeypatch.setattr(tables, "BLOCK_ROWS", 30 if small else 1 << 14)
        folder = tmp_path / f"{parts}"
        order = draws.sample(range(len(texts)), len(texts))
        given = [texts[i] for i in order], unit, [scores[i] for i in order], np.array(order)
        counts, path = removed(folder, *given, parts=parts, batch=batch)
        assert unpacked(path) == expected and counts["removed"] == len(expected)
    left, columns = exact.cut(texts, range(len(texts)), path)
    assert columns["duplicate_pieces"].sum() == len(expected)
    for number, text in enumerate(texts):
        gone = {i for n, start, end, _ in expected if n == number for i in range(start, end)}
        assert columns["duplicate_characters"][number] == len(gone)
        stays = "".join(c for i, c in enumerate(text) if i not in gone)
        assert left[number] == (stays.strip() if gone else text)


def test_planted_documents_all_go(tmp_path):
    texts = prose()
    planted = [" ".join(text.split()) for text in texts]
    _, path = removed(tmp_path, texts + planted, Unit("document"), parts=2)
    columns = exact.columns(range(2 * len(texts)), path)
    assert columns["duplicate_keep"].tolist() == [True] * len(texts) + [False] * len(texts)
    assert columns["duplicate_of"].tolist() == [*range(len(texts))] * 2


def test_the_best_stays(tmp_path):
    _, path = removed(tmp_path, ["a b", "a  b", "a b", "c"], Unit("document"), [1, 2, 2, float("nan")])
    assert exact.columns(range(4), path)["duplicate_of"].tolist() == [1, 1, 1, 3]
    assert exact.columns([9], path)["duplicate_keep"].tolist() == [True]


def test_a_repeated_run_of_words_is_cut_where_it_occurs_again(tmp_path):
    words = [f"w{i}" for i in range(400)]
    run = " ".join(words[:60])
    texts = [f"First, {run}. End.", "Other text, " + run.upper().replace(" ", "\n") + ", and an end", " ".join(words[:49])]
    _, path = removed(tmp_path, texts, Unit("window"))
    left, columns = exact.cut(texts, range(3), path)
    assert left == [texts[0], "Other text, , and an end", texts[2]]
    assert columns["duplicate_pieces"].tolist() == [0, 11, 0]


def test_three_sentences():
    text = 'One. Two? "Three!" Four… 五。六。\nNo mark\n\n Last'
    spans = [text[start:end] for start, end in KINDS["sentences"](text)]
    assert spans[0] == 'One. Two? "Three!" ' and spans[3] == "Four… 五。六。\n" and len(spans) == 8 - SENTENCES + 1
    assert spans[-1] == "六。\nNo mark\n\n Last" and not list(KINDS["sentences"]("One. Two."))


def test_lines_and_paragraphs_cover_the_text():
    text = "a\nb\n\n \n  c\n\n\nd\n"
    for kind in ("line", "paragraph", "document"):
        assert "".join(text[start:end] for start, end in KINDS[kind](text)) == text
    assert [text[s:e] for s, e in KINDS["paragraph"](text)] == ["a\nb\n\n \n  ", "c\n\n\n", "d\n"]


def test_what_normal_forms_ignore():
    form = pieces.NORMALISED
    assert form["ccnet"]("In 1984,  THE (end)!") == form["ccnet"]("in 2001 the end") != form["case"]("in 2001 the end")
    assert form["case"]("A\tb ") == "a b" and form["whitespace"]("A\tb ") == "A b" and form["none"]("A ") == "A "


def test_what_users_do_wrong(tmp_path):
    for wrong in ({"kind": "word"}, {"normalise": "stem"}, {"window": 0}, {"min_characters": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Unit(**wrong)
    for name, unit in (("a", Unit("line")), ("b", Unit("document"))):
        with exact.new_part(tmp_path / name, unit) as part:
            part.add(["x"], [1])
    with pytest.raises(UserError, match="different settings of exact"):
        exact.find([tmp_path / "a", tmp_path / "b"], tmp_path / "t")
    with pytest.raises(UserError, match="no complete part"):
        exact.find([tmp_path / "c"], tmp_path / "t")
