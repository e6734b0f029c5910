"""Dumps of wikis give articles as plain text; hostile XML and wikitext end quickly with a reason."""

import bz2
import html
import random
import re

import pytest

from data.sources.archives import wikitext, xml
from tests.data.sources.archives.common import read

# MediaWiki.

ARTICLE = """{{Infobox person
| name = [[Ann]]
| spouse = {{marriage|{{nowrap|Bob}}|1900}}}}
'''Ann''' ({{lang|de|Anna}})<ref name="x">A {{cite|book}}.</ref><ref name=y/> kept [[honey bee|bees]] and [[wasp]]s.<!-- no -->
[[File:a.jpg|thumb|A [[bee]] on a flower]][[Kategorie:Imker]][[de:Ann]]
{| class="wikitable"
! Year || Hives
|-
| 1900 || {{formatnum:7}}
|}
== Life ==
=== Early ===
* born on ''Monday''
# and so on{{sfn|Lee|1999}}
:She walked {{convert|5|km|mi}} &amp; [//a.example rested] often.<br/>Then <math>x^2 < y</math> and <nowiki>[[this]]</nowiki>.
== Code ==
<syntaxhighlight lang="c">
int a[2] = {{1}};
</syntaxhighlight>
== References ==
{{reflist}}
"""
PLAIN = """Ann (Anna) kept bees and wasps.

Life

Early

- born on Monday
- and so on
She walked 5 km & rested often.
Then x^2 < y and [[this]].

Code

int a[2] = {{1}};"""


def wiki(*pages: str) -> str:
    site = "<base>https://en.wikipedia.org/wiki/Main_Page</base><namespaces>{}</namespaces>".format(
        '<namespace key="14">Kategorie</namespace><namespace key="0" />'
    )
    return f'<mediawiki xml:lang="en"><siteinfo>{site}</siteinfo>{"".join(pages)}</mediawiki>'


def page(text: str, title="Ann Lee", number=7, extra="<ns>0</ns>") -> str:
    revision = f"<id>99</id><timestamp>2020-01-02T03:04:05Z</timestamp><model>wikitext</model><text>{html.escape(text)}</text>"
    return f"<page><title>{title}</title><id>{number}</id>{extra}<revision>{revision}</revision></page>\n"


def test_articles_of_a_wiki(tmp_path):
    pages = [
        page(ARTICLE),
        page("#REDIRECT [[Ann]]", "Anna", 8, '<ns>0</ns><redirect title="Ann" />'),
        page("talk", "Talk:Ann", 9, "<ns>1</ns>"),
        page("{{empty}}", "Empty", 10),
        page("Über die Bienen.", "Über?", 11),
    ]
    (tmp_path / "a.xml.bz2").write_bytes(bz2.compress(wiki(*pages).encode()))
    (ann, bees), quarantined = read(tmp_path / "a.xml.bz2")
    assert ann.text == PLAIN
    assert (ann.id, ann.url, ann.licence) == ("a.xml.bz2#7", "https://en.wikipedia.org/wiki/Ann_Lee", "CC-BY-SA-4.0")
    assert (ann.language, ann.date, ann.metadata) == ("en", "2020-01-02T03:04:05Z", {"title": "Ann Lee"})
    assert bees.url == "https://en.wikipedia.org/wiki/%C3%9Cber%3F"
    assert quarantined == [("page 10", "no text")]


def test_a_truncated_dump_gives_what_came_before(tmp_path):
    whole = wiki(page("One."), page("Two.", number=8))
    (tmp_path / "a.xml").write_text(whole[:-40])
    documents, quarantined = read(tmp_path / "a.xml")
    assert [d.text for d in documents] == ["One."] and quarantined == [("", "truncated xml")]
    (tmp_path / "a.xml").write_text(whole.replace("Two", "<b>&"))
    documents, quarantined = read(tmp_path / "a.xml")
    assert [d.text for d in documents] == ["One."] and quarantined == [("", "not xml")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {{b}} c {{{d|e}}} f", "a  c e f"),
        ("{{nowrap|a {{nowrap|b}}}}}}", "a b"),
        ("open {{ and [[ and {| and <ref> stay out", "open  and  and {| and  stay out"),
        ("close }} and ]] and </ref>", "close  and  and"),
        ("[[a|b]] [[:c]] [[d#e]] [[#f]] [[wikt:g|h]] [[Image:i|j]]", "b c d f h"),
        ("[//a.example] [http://b.example c d] https://e.example", "c d https://e.example"),
        ("''a'' '''b''' it's", "a b it's"),
        ("== a ==\n== b ==\n=== c ===\ntext\n= d =\n", "b\n\nc\n\ntext"),
        ("<pre>* a\n'''b'''</pre>", "* a\n'''b'''"),
        ("<!-- a --> b <!-- c", "b  c"),
        ("x <ref>a</ref> y <ref name='b'>c</ref> z <REF/>.", "x  y  z ."),
        ("{|\n| a\n{|\n| b\n|}\n|}\nc", "c"),
        ("", ""),
    ],
)
def test_wikitext(source, expected):
    assert wikitext.plain(source) == expected


SHAPES = (
    "{{nowrap|.%s.}}",
    "{{cite|%s.}}",
    "[[.%s.]]",
    "[[a|.%s.]]",
    "[[File:b|.%s]]",
    "{{{c|.%s.}}}",
    "x %s y",
    "\n{|\n| %s\n|}\n",
)


def nested(random: random.Random, depth: int) -> str:
    """Return wikitext whose marks are all closed."""
    parts = [nested(random, depth - 1) for _ in range(random.randrange(3))] if depth else [random.choice(("", "word", "b c"))]
    return random.choice(SHAPES) % " ".join(parts)


def innermost_first(text: str) -> str:
    """The plain twin of `_without_marks`: resolve a mark that holds no other, until there is none."""
    inside = r"((?:(?!\{\{|\}\}|\[\[|\]\]|\{\||^\|\}).)*?)"
    rules = [
        (rf"\{{\{{\{{{inside}\}}\}}\}}", lambda m: m[1].partition("|")[2]),
        (rf"\{{\{{{inside}\}}\}}", lambda m: m[1].partition("|")[2].strip() if m[1].startswith("nowrap|") else ""),
        (rf"\[\[{inside}\]\]", lambda m: "" if m[1].startswith("File:") else m[1].partition("|")[2] or m[1].strip()),
        (rf"^\{{\|{inside}^\|\}}", lambda m: ""),
    ]
    while True:
        before = text
        for pattern, resolve in rules:
            text = re.sub(pattern, resolve, text, count=1, flags=re.MULTILINE | re.DOTALL)
            if text != before:
                break
        if text == before:
            return text


def test_one_pass_gives_what_resolving_the_innermost_first_gives():
    for seed in range(200):
        source = nested(random.Random(seed), 3)
        assert wikitext._without_marks(source, frozenset({"file"})) == innermost_first(source), source


MARKS = ("{{", "}}", "[[", "[[a|", "{{nowrap|", "{|\n", "<ref>", "<ref ", "<!--", "<", "[http://", "''", "=a", "== ")


@pytest.mark.parametrize("mark", MARKS)
def test_hostile_wikitext_takes_linear_time(mark):
    # A quadratic step would take hours for this.
    wikitext.plain(mark * (1_000_000 // len(mark)))
    wikitext.plain(mark * (300_000 // len(mark)) + "}}" * 100_000 + "]]" * 100_000)


# Hostile XML.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><mediawiki>&b;</mediawiki>', "xml entity"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><mediawiki>&b;</mediawiki>', "xml entity"),
        (b"<mediawiki>" + b"<a>" * 1000, "xml too deep"),
        (b"<mediawiki>" + b"<a b='" + b"x" * 3_000_000, "xml token over 1 MiB"),
        (b"<mediawiki>" + b"<!--" + b"x" * 3_000_000, "xml token over 1 MiB"),
        (b"<mediawiki></a>", "not xml"),
        (b"<mediawiki>\xff\xfe</mediawiki>", "not xml"),
        (b"<other></other>", "unknown format"),
    ],
)
def test_hostile_xml(tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr(xml, "MAX_TOKEN_BYTES", 1 << 20)
    (tmp_path / "a.xml").write_bytes(data)
    assert read(tmp_path / "a.xml") == ([], [("", reason)])


def test_a_long_article_is_quarantined_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(xml, "MAX_TEXT_CHARACTERS", 1000)
    (tmp_path / "a.xml").write_text(wiki(page("x" * 2000), page("short", number=8)))
    documents, quarantined = read(tmp_path / "a.xml")
    assert [d.text for d in documents] == ["short"] and quarantined == [("page 7", "article over 4 MiB")]
