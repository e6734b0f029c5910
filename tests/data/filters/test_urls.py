"""Block lists: what is blocked, by which list, and what is not."""

import pytest

from data.filters.urls import BlockLists, host_of, read_list, url_columns
from lm.errors import UserError

LISTS = BlockLists(
    domains=["bad.example", "*.worse.example", "Bücher.example", "", "spam.co.uk"],
    urls=["https://ok.example/page?id=1#top", "www.ok.example/other/"],
    strict_words=["forbidden", "no-no"],
    soft_words=["one", "two", "three"],
    substrings=["buystuff"],
)


def reason(url: str | None, lists: BlockLists = LISTS) -> str:
    """The first bound of configs/curate/default.py that an address breaks."""
    bounds = {"domain": 0, "listed": 0, "strict_words": 0, "soft_words": 1, "substrings": 0}
    columns = url_columns([url], lists)
    return next((name for name, most in bounds.items() if columns[f"url_{name}"][0] > most), "")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://bad.example/", "domain"),
        ("http://user:pw@WWW.Bad.Example:8080/x", "domain"),
        ("bad.example/x", "domain"),
        ("https://a.b.worse.example./", "domain"),
        ("https://bücher.example/x", "domain"),
        ("https://xn--bcher-kva.example/x", "domain"),
        ("https://notbad.example/", ""),
        ("https://bad.example.org/", ""),
        ("https://example/bad.example", ""),
        ("https://co.uk/", ""),
        ("http://ok.example/page?id=1", "listed"),
        ("https://www.ok.example/other#x", "listed"),
        ("https://ok.example/page?id=2", ""),
        ("https://ok.example/Forbidden/x", "strict_words"),
        ("https://ok.example/nono", "strict_words"),
        ("https://ok.example/unforbidden", ""),
        ("https://ok.example/one-two", "soft_words"),
        ("https://ok.example/one-one", ""),
        ("https://ok.example/buy-stuff.html", "substrings"),
        ("https://ok.example/buy/staff", ""),
        ("https://[broken", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_an_address_is_blocked_for_the_first_reason(url, expected):
    assert reason(url) == expected


def test_the_recipe_chooses_how_many_soft_words_block():
    columns = url_columns(["https://x.example/one/two", "https://x.example/one/two/three", "https://x.example/"], LISTS)
    assert columns["url_soft_words"].tolist() == [2, 3, 0]
    assert columns["url_host"] == ["x.example"] * 3


def test_own_words_block_without_a_list_and_leave_ordinary_addresses():
    assert reason("https://example.org/xxx/1", BlockLists()) == "strict_words"
    assert reason("https://example.org/casino-poker", BlockLists()) == "soft_words"
    for url in ("https://en.wikipedia.org/wiki/Essex", "https://example.org/adult-education", "https://sussex.ac.uk/analysis"):
        assert reason(url, BlockLists()) == ""


def test_lists_are_read_from_files(tmp_path):
    (tmp_path / "domains").write_text("# UT1\nbad.example\n\n  worse.example  \n", encoding="utf-8")
    assert read_list(tmp_path / "domains") == ["bad.example", "worse.example"]
    with pytest.raises(UserError, match="nothing: cannot read this list"):
        read_list(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="UTF-8 text file"):
        read_list(tmp_path / "binary")


def test_an_ipv6_address_is_a_host_in_any_of_its_forms():
    forms = ("http://[2001:db8::1]:8080/x", "//[2001:DB8:0::1]", "[2001:db8::1]:80", "2001:db8::1", "http://u:p@[2001:db8::1]/")
    assert {host_of(form) for form in forms} == {"2001:db8::1"}
    for entry in ("2001:db8::1", "[2001:db8::1]"):
        assert reason("http://[2001:db8:0:0::1]:8080/x", BlockLists(domains=[entry])) == "domain"
        assert reason("http://[2001:db9::1]/", BlockLists(domains=[entry])) == ""


def test_columns_of_no_address():
    assert all(len(column) == 0 for column in url_columns([], LISTS).values())
    assert host_of("   ") == ""


def test_a_hostile_address_takes_little_time_and_memory():
    columns = url_columns(["http://" + "a." * 500_000, "http://x.example/" + "buy" * 500_000, "http://[" * 100_000], LISTS)
    assert columns["url_substrings"].tolist() == [0, 0, 0]
