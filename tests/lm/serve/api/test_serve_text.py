"""Text of sampled tokens: whole characters, stop strings across tokens, places of tokens; however the tokens are grouped."""

import itertools

import pytest

from lm.infer.engine.request import Likely
from lm.serve.api.answers import TextStream, spelling


def stream(tokenizer, ids, sizes=(1,), over=True, **options):
    """(text, tokens, the pieces, the stream) of ids that come in groups of these sizes."""
    found, pieces, sizes, n = TextStream(tokenizer, **options), [], itertools.cycle(sizes), 0
    while n < len(ids):
        size = next(sizes)
        group = ids[n : n + size]
        n += size
        likely = [Likely(-float(i), ()) for i in group]
        pieces.append(found.feed(group, likely, over=over and n >= len(ids)))
        if found.stopped or found.blocked:
            break
    text, tokens = "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens]
    return text, tokens, pieces, found


SAID = "the cat → 深い mat\n"


@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 3), (99,)])
def test_pieces_add_up_and_hold_whole_characters(tokenizer, sizes):
    ids = tokenizer.encode(SAID) + [tokenizer.eos_id]
    text, tokens, pieces, _ = stream(tokenizer, ids, sizes)
    assert text == SAID and [token.id for token in tokens] == ids
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert [token.likely.chosen for token in tokens] == [-i for i in ids]


def test_a_token_begins_where_its_text_does(tokenizer):
    ids = tokenizer.encode("the cat sat")
    for token in stream(tokenizer, ids)[1]:
        assert "the cat sat"[token.begin :].startswith(tokenizer.decode([token.id]))
    inside = tokenizer.encode("a☃b")  # a character of three byte tokens
    assert [token.begin for token in stream(tokenizer, inside)[1]] == [0, 1, 1, 1, 2]


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer):
    ids = tokenizer.encode("☃")[:2]
    assert stream(tokenizer, ids)[0] == tokenizer.decode(ids) == "\ufffd"


@pytest.mark.parametrize("sizes", [(1,), (2,), (99,)])
@pytest.mark.parametrize("stop", ["cat", "e ca", "→", "深", "the", "\n", " mat\n", "t → 深い"])
def test_nothing_of_a_stop_string_is_shown(tokenizer, stop, sizes):
    ids = tokenizer.encode(SAID)
    text, tokens, pieces, found = stream(tokenizer, ids, sizes, stops=(stop, "never"))
    assert found.stopped and text == SAID[: SAID.index(stop)]
    assert all(token.begin < len(text) for token in tokens)
    # The count ends with the token that completed it, however the tokens were grouped.
    whole = next(n for n in range(len(ids) + 1) if stop in tokenizer.decode(ids[:n]))
    assert found.count == whole
    assert found.feed(tokenizer.encode("more")).text == ""


def test_the_earliest_stop_string_counts_and_may_be_kept(tokenizer):
    ids = tokenizer.encode(SAID)
    assert stream(tokenizer, ids, stops=("mat", "cat", "at"))[0] == "the "
    assert stream(tokenizer, ids, stops=("mat", "cat"), keep_stop=True)[0] == "the cat"


def test_the_beginning_of_a_stop_string_is_shown_in_the_end(tokenizer):
    ids = tokenizer.encode("the ca")
    text, _, pieces, found = stream(tokenizer, ids, stops=("cat",), over=False)
    assert not text.endswith("c") and not text.endswith("a")
    assert text + found.feed((), over=True).text == "the ca" and not found.stopped


def test_no_stop_string_begins_in_the_first_tokens(tokenizer):
    ids = tokenizer.encode("cat cat cat")
    least = len(tokenizer.encode("cat"))
    assert stream(tokenizer, ids, stops=("cat",), least=least)[0] == "cat "


def test_control_symbols_are_text_only_where_wanted(tokenizer):
    tool = tokenizer.controls["<|tool|>"]
    ids = [*tokenizer.encode("a"), tool, *tokenizer.encode("b")]
    assert stream(tokenizer, ids)[0] == "ab"
    assert stream(tokenizer, ids, spelled={tool: b"<|tool|>"})[0] == "a<|tool|>b"


class Censor:
    """Lets text pass up to a word, two characters late."""

    def __init__(self):
        self.seen = self.shown = ""

    def feed(self, text, over):
        self.seen += text
        blocked = "cat" in self.seen
        end = self.seen.index("cat") if blocked else len(self.seen) - (0 if over else 2)
        new = self.seen[len(self.shown) : max(end, len(self.shown))]
        self.shown += new
        return new, blocked


@pytest.mark.parametrize("sizes", [(1,), (99,)])
def test_an_outlet_may_end_the_text(tokenizer, sizes):
    text, tokens, _, found = stream(tokenizer, tokenizer.encode(SAID), sizes, outlet=Censor().feed)
    assert found.blocked and text == "the " and all(token.begin < 4 for token in tokens)
    assert stream(tokenizer, tokenizer.encode("a dog"), sizes, outlet=Censor().feed)[0] == "a dog"


def test_spelling_of_tokens(tokenizer):
    names = {i: symbol for symbol, i in tokenizer.controls.items()}
    assert spelling(tokenizer, names, tokenizer.eos_id) == ("</s>", b"</s>")
    first = tokenizer.encode("☃")[0]
    assert spelling(tokenizer, names, first) == ("bytes:\\xe2", b"\xe2")
