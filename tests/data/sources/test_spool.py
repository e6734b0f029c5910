"""A spooled source gives what its source gives, on every pass, and reads it once."""

import itertools

from data.sources import spooled
from data.sources.source import Document, Source

DOCUMENTS = [
    Document(id="a", text="line\nline\r\n\u2028 \x85 ▁ \x00 𝔘", origin="o", licence="MIT", split_key="k"),
    Document(id="c", text="c", origin="o", url="u", language="de", date="2024-05-06", metadata={"title": "ü"}),
    Document(id="b", text="", origin="p"),
]


def test_later_passes_are_equal_and_do_not_read_the_source(tmp_path):
    reads = []

    def read():
        reads.append(1)
        yield from DOCUMENTS

    source = spooled(Source("s", read), tmp_path / "spool")
    assert list(source.read()) == DOCUMENTS
    assert list(source.read()) == DOCUMENTS
    assert len(reads) == 1


def test_a_pass_that_was_cut_short_leaves_nothing_behind_to_be_taken_for_whole(tmp_path):
    source = spooled(Source("s", lambda: iter(DOCUMENTS)), tmp_path)
    assert list(itertools.islice(source.read(), 1)) == DOCUMENTS[:1]
    assert list(source.read()) == DOCUMENTS
