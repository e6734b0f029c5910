"""Pages give their main text, title, language and rights; bombs are refused."""

import pytest

from data.sources.archives import html, rights
from data.sources.streams import Unreadable
from tests.data.sources.archives.common import read

BODY = "<main><h1>On bees</h1><p>Bees gather nectar, and they make honey of it through the whole summer.</p></main>"
HEAD = "<head><title>All\n about  bees</title>HEAD</head>"
NAVIGATION = "<nav><a href=/>Home</a><a href=/shop>Shop</a></nav>"
PAGE = f'<!doctype html><html lang="en-GB">{HEAD}<body>{NAVIGATION}{BODY}<footer>Imprint</footer></body></html>'


def test_main_text_title_and_language(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    [document], quarantined = read(tmp_path / "a.html")
    assert "make honey" in document.text and "Shop" not in document.text and not quarantined
    assert (document.language, document.metadata) == ("en", {"title": "All about bees"})
    [document], _ = read(tmp_path / "a.html", main_content=False)
    assert "Shop" in document.text


@pytest.mark.parametrize(
    ("head", "licence", "expected"),
    [
        ('<meta name=robots content="noai, noindex">', None, {"robots": "noai, noindex"}),
        ('<META NAME="GPTBot" CONTENT="noindex"><meta name=robots content=all>', None, {"robots": "gptbot: noindex, all"}),
        ('<meta name="tdm-reservation" content="1">', None, {"tdm-reservation": "1"}),
        (
            '<link rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/deed.de">',
            "CC-BY-SA-4.0",
            {"licence_link": "https://creativecommons.org/licenses/by-sa/4.0/deed.de"},
        ),
        (
            '<a rel="nofollow license" href="//creativecommons.org/licenses/by-nc/3.0/us/">x</a>',
            "CC-BY-NC-3.0-US",
            {"licence_link": "//creativecommons.org/licenses/by-nc/3.0/us/"},
        ),
        (
            '<meta name="DC.rights" content="http://creativecommons.org/publicdomain/zero/1.0/">',
            "CC0-1.0",
            {"rights": "http://creativecommons.org/publicdomain/zero/1.0/"},
        ),
        ('<meta name="copyright" content="Ann  Other">', None, {"rights": "Ann Other"}),
    ],
)
def test_rights_are_carried_along(head, licence, expected):
    page = html.page(PAGE.replace("HEAD", head).encode())
    del page.metadata["title"]
    assert (page.licence, page.metadata) == (licence, expected)


@pytest.mark.parametrize("name", [*rights.ROBOTS, *rights.TDM, *rights.LICENCE_NAMES])
def test_all_names_of_rights_are_found(name):
    page = html.page(
        PAGE.replace("HEAD", f'<meta content="no" name=" {name.title()} "><meta name=viewport content=x>').encode()
    )
    key = "robots" if name in rights.ROBOTS else name if name in rights.TDM else "rights"
    assert page.metadata[key] == ("no" if name == "robots" or key != "robots" else f"{name}: no")


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1251", "koi8-r", "utf-16"])
def test_the_encoding_is_that_of_the_page(encoding):
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."
    data = f"<html><head><meta charset={encoding}></head><body><p>{text}</p></body></html>".encode(encoding)
    assert html.page(data, main_content=False).text == text
    assert html.page(data, "utf-8", main_content=False).text == text


def test_bombs_are_refused():
    deep = b"<div>" * 100_000
    for data, reason in (
        (deep + b"text", "html too deep"),
        (b"<div></x>" * 50_000 + b"text", "html too deep"),
        (b"<p>x" * 2_000_000, "html over 5 MiB"),
        (b"<p " + b" ".join(b"a%d=1" % k for k in range(300_000)) + b">text", "html tag too long"),
        (b"<p>\0\1\2\3</p>", "binary"),
        (b"<script>text</script>", "no text"),
        (b"", "no text"),
    ):
        with pytest.raises(Unreadable, match=reason):
            html.page(data)


def test_a_deep_page_of_few_tags_and_a_long_attribute_are_fine():
    assert html.page(b"<div>" * 1_000 + b"text", main_content=False).text == "text"
    path = "M 0 0 L 1 1 " * 5_000
    assert html.page(f'<svg><path d="{path}"/></svg><p>text</p>'.encode(), main_content=False).text == "text"
