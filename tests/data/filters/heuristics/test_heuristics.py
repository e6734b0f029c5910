"""The measures of Gopher, C4, FineWeb, DCLM and code: by hand, and beside datatrove's filters on real text."""

import sysconfig
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from data.filters.heuristics.c4 import c4, c4_paragraphs
from data.filters.heuristics.code import code
from data.filters.heuristics.dclm import dclm_lines
from data.filters.heuristics.fineweb import fineweb_quality
from data.filters.heuristics.gopher import gopher_quality, gopher_repetition
from data.filters.words import Words


def of(measure, text: str) -> dict[str, float]:
    return {name: values[0].item() for name, values in measure(Words([text])).items()}


def test_gopher_quality():
    found = of(gopher_quality, "- The cat and the #hat ...\n• of 12 mice …\nto be")
    assert found["gopher_words"] == 11  # "•" counts, but not "-", "#", "..." and "…"
    assert found["gopher_mean_word_length"] == pytest.approx(28 / 11)
    assert found["gopher_bullet_lines"] == pytest.approx(2 / 3)
    assert found["gopher_ellipsis_lines"] == pytest.approx(2 / 3)
    assert found["gopher_stop_words"] == 5  # and, the, of, to, be
    assert all(value == 0 for value in of(gopher_quality, "").values())


def test_gopher_repetition():
    found = of(gopher_repetition, "same\n\nsame\n\nother")
    assert found["gopher_duplicate_lines"] == found["gopher_duplicate_paragraphs"] == pytest.approx(1 / 3)
    assert found["gopher_duplicate_line_characters"] == pytest.approx(4 / 17)
    assert found["gopher_top_2_gram"] == pytest.approx(9 / 17)
    assert all(value == 0 for value in of(gopher_repetition, "").values())


def test_c4():
    page = "A line of prose ends here.\nA title\nNo end mark in this line\n"
    page += "We use cookies on this page.\nEnable Javascript, please.\n"
    page += "A fact.[1]\nIt goes on and on...\nHe said [citation needed] a lot. And more!"
    texts, columns = c4(Words([page, "lorem ipsum dolor sit amet.", "if (x) { return and stop.", ""]))
    assert texts[0] == "A line of prose ends here.\nHe said  a lot. And more!"
    assert columns["c4_sentences"].tolist() == [3, 0, 0, 0]
    assert columns["c4_lorem_ipsum"].tolist() == [0, 1, 0, 0] and columns["c4_curly_brackets"].tolist() == [0, 0, 1, 0]
    assert columns["c4_dropped_lines"].tolist() == [6 / 8, 1, 1, 0]
    assert c4(Words([page]), end_marks=(), min_words=-1)[0][0].count("\n") == 5
    assert c4(Words(["x" * 1001 + " is a word."]))[0] == [""]
    assert c4_paragraphs(Words(["a" * 200 + "\n" + "b" * 199]))["c4_long_lines"].tolist() == [1]


def test_fineweb():
    found = of(fineweb_quality, "A long line, which has more than thirty characters.\nshort\nshort\n\n")
    assert found["fineweb_ended_lines"] == pytest.approx(1 / 3) and found["fineweb_short_lines"] == pytest.approx(2 / 3)
    assert found["fineweb_duplicate_characters"] == pytest.approx(5 / 61) and found["fineweb_newlines"] == pytest.approx(4 / 13)
    assert all(value == 0 for value in of(fineweb_quality, "\n").values())


def test_dclm():
    page = "A usual line stays here.\nALL CAPITALS HERE\n12345\n1,234 likes!\nword\n\n\n\n"
    page += "3 items in cart\nAnd more. Read more...\nSign-in"
    (text,), columns = dclm_lines(Words([page]))
    assert text == "A usual line stays here.\n\n3\nAnd more."
    assert columns["dclm_removed_words"][0] == pytest.approx(1 - 8 / 22)
    assert dclm_lines(Words([""]))[1]["dclm_removed_words"].tolist() == [1]


@pytest.mark.parametrize(
    "language, text, comments",
    [
        ("Python", '"""Docs."""\nx = "# no"  # yes\ny = """\nno comment"""\n', len("Docs.") + len(" yes")),
        ("Python", 'def f():\n    """Docs."""\n    return g("text")\n', len("Docs.")),
        ("C", 'char *s = "// no"; // yes\n/* and\n this */', len(" yes") + len(" and\n this ")),
        ("Shell", "echo '# no' # yes", len(" yes")),
        ("SQL", "select 1 -- yes", len(" yes")),
        ("HTML", "<p>x</p><!-- yes -->", len(" yes ")),
    ],
)
def test_comments(language, text, comments):
    assert code([text], [language])["code_comments"][0] == pytest.approx(comments / len(text))


def test_code():
    found = code(["a = 1\n\nbcd", '<?xml version="1.0"?>', ""], ["Python", None, "Brainfuck"])
    assert found["code_lines"].tolist() == [3, 1, 1] and found["code_longest_line"].tolist() == [5, 21, 0]
    assert found["code_letters"].tolist() == pytest.approx([4 / 10, 10 / 21, 0])
    assert found["code_xml"].tolist() == [False, True, False] and np.isnan(found["code_comments"][1:]).all()


def kept(texts: list[str], name: str) -> np.ndarray:
    """Return whether our measures, with the filters' constants, keep each text."""
    words = Words(texts)
    if name == "GopherQualityFilter":
        c = gopher_quality(words)
        ends = (c["gopher_words"] >= 50) & (c["gopher_words"] <= 100_000)
        mean = (c["gopher_mean_word_length"] >= 3) & (c["gopher_mean_word_length"] <= 10)
        marks = (c["gopher_hash_ratio"] <= 0.1) & (c["gopher_ellipsis_ratio"] <= 0.1)
        lines = (c["gopher_bullet_lines"] <= 0.9) & (c["gopher_ellipsis_lines"] <= 0.3)
        return ends & mean & marks & lines & (c["gopher_letter_words"] >= 0.8) & (c["gopher_stop_words"] >= 2)
    if name == "GopherRepetitionFilter":
        c = gopher_repetition(words)
        most = {"duplicate_lines": 0.3, "duplicate_paragraphs": 0.3}
        most |= {"duplicate_line_characters": 0.2, "duplicate_paragraph_characters": 0.2}
        most |= {"top_2_gram": 0.2, "top_3_gram": 0.18, "top_4_gram": 0.16}
        most |= {f"duplicate_{n}_grams": share for n, share in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1))}
        return np.all([c[f"gopher_{of}"] <= share for of, share in most.items()], axis=0)
    if name == "C4QualityFilter":
        c = c4(words)[1]
        return (c["c4_sentences"] >= 5) & (c["c4_lorem_ipsum"] == 0) & (c["c4_curly_brackets"] == 0)
    c = fineweb_quality(words)
    lines = (c["fineweb_ended_lines"] >= 0.12) & (c["fineweb_short_lines"] <= 0.67)
    return lines & (c["fineweb_duplicate_characters"] <= 0.01) & (c["fineweb_newlines"] <= 0.3)


def texts_in_many_scripts() -> list[str]:
    """Return pages of spaCy's example sentences, with addresses, emoji and units among them."""
    pages = []
    for language in ("ar", "de", "el", "en", "fa", "he", "hi", "ja", "ko", "ru", "ta", "tr", "uk", "zh"):
        sentences = import_module(f"spacy.lang.{language}.examples").sentences
        lines = [f"{some} (http://foldoc.org/)." for some in sentences[::3]] + [
            f"The end of that: {some} 10km. 😀" for some in sentences
        ]
        pages += ["\n".join(lines), " ".join(sentences * 2), "".join(sentences), "\n".join(sentences[:4] + sentences[:2] * 3)]
    return pages


@pytest.mark.parametrize("name", ["GopherQualityFilter", "GopherRepetitionFilter", "C4QualityFilter", "FineWebQualityFilter"])
def test_the_kept_documents_are_those_of_datatrove(name):
    from datatrove.data import Document
    from datatrove.pipeline import filters

    library = Path(sysconfig.get_path("stdlib"))
    texts = [*topics.values(), *(path.read_text(errors="replace")[:8000] for path in sorted(library.glob("*.py"))[:60])]
    texts += texts_in_many_scripts()
    theirs = getattr(filters, name)()
    results = [theirs.filter(Document(text=text, id="")) for text in texts]
    want = np.array([result[0] if isinstance(result, tuple) else bool(result) for result in results])
    have = kept(texts, name)
    assert have.tolist() == want.tolist() and 0 < have.sum() < len(texts)
