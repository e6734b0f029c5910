"""Personal data: found in hard cases, not in others, masked without another change."""

import html
import pydoc_data.topics
import random
import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("phonenumbers")

from data.filters.pii.emails import find_emails
from data.filters.pii.folding import _folded, decode_entities, fold
from data.filters.pii.masking import FINEWEB, KINDS, Span, find_pii, mask_pii, replace_spans
from data.filters.pii.numbers import find_cards, find_ibans, find_ssns, is_card, luhn
from data.filters.pii.phones import find_phones, has_long_number
from lm.errors import UserError
from tests.data.filters.pii.cases import negatives, positives, unmarked, written
from tests.data.filters.pii.planted import planted

POSITIVES = positives()
NEGATIVES = negatives()


def test_recall_and_precision():
    expected, found, right = Counter(), Counter(), Counter()
    for marked in POSITIVES + NEGATIVES:
        text, spans = unmarked(marked)
        got = [tuple(span) for span in find_pii(text)]
        expected.update(kind for _, _, kind in spans)
        found.update(kind for _, _, kind in got)
        right.update(kind for _, _, kind in set(spans) & set(got))
    assert len(POSITIVES) >= 300 and len(NEGATIVES) >= 300 and set(expected) == set(KINDS)
    assert sum(right.values()) >= 0.98 * sum(expected.values()), expected - right
    assert sum(right.values()) >= 0.95 * sum(found.values()), found - right
    assert all(right[kind] >= 0.9 * expected[kind] for kind in KINDS), expected - right


def _score(marked: list[str]) -> tuple[float, float, list]:
    """Return recall and precision of spans that agree to the character, and the differences."""
    expected, got = set(), set()
    for number, text in enumerate(marked):
        plain, spans = unmarked(text)
        expected |= {(number, plain[start:end], *span) for span in spans for start, end, _ in [span]}
        got |= {(number, plain[span.start : span.end], *span) for span in find_pii(plain)}
    return len(expected & got) / len(expected), len(expected & got) / len(got), sorted(expected ^ got)


@pytest.mark.parametrize("personal, clean", [("forms.txt", "lookalikes.txt"), ("letters.txt", "figures.txt")])
def test_recall_and_precision_on_other_texts(personal, clean):
    recall, precision, differences = _score(written(personal) + negatives(clean))
    assert recall >= 0.98 and precision >= 0.95, differences


def test_recall_and_precision_in_real_text():
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 500]
    recall, precision, differences = _score(planted(texts, 900, seed=3))
    assert recall >= 0.98 and precision >= 0.95, differences


def test_documentation_has_no_cards_and_no_addresses():
    texts = [
        *pydoc_data.topics.topics.values(),
        "\n".join(map(str, range(1000, 7000))),  # line numbers
        "\n\n".join(
            f"{a}.{b}.{c}.{d}. Title of a section\n\nIts text."
            for a in (2, 9, 36)
            for b in (1, 9)
            for c in (7, 31)
            for d in (2, 60)
        ),
        "zlib 1.2.2.2 and later, see 36.3.1.1, upgraded from 5.15.0.91",
    ]
    columns = mask_pii(texts)[1]
    assert all(columns[f"pii_{kind}"].sum() == 0 for kind in ("card", "iban", "ip", "ssn", "phone"))


def test_masks_replace_html_entities_whole():
    text = "Mail &#106;o&#64;posteo&period;d&#101;, call +49&nbsp;30&nbsp;90182&#48; &amp; wait."
    assert mask_pii([text])[0] == ["Mail <EMAIL>, call <PHONE> &amp; wait."]


def test_decoded_entities_keep_their_places():
    draw = random.Random(2)
    pieces = ["a", " ", "&", ";", "&amp;", "&#64;", "&#x40;", "&nosuch;", "&NotEqualTilde;", "&#0;", "é", "&lt", "12"]
    for _ in range(300):
        text = "".join(draw.choices(pieces, k=12))
        decoded, places = decode_entities(text)
        if places is None:
            assert decoded == text
            continue
        assert len(places) == len(decoded) + 1 and places[0] == 0 and places[-1] == len(text)
        for n, character in enumerate(decoded):
            said = text[places[n] : places[n + 1]]
            assert character == said or (character == html.unescape(said) and said.startswith("&") and said.endswith(";"))


@pytest.mark.parametrize("marked", POSITIVES[::7])
def test_a_span_does_not_depend_on_what_stands_around_it(marked):
    text, spans = unmarked(marked)
    long = "Some words of an ordinary sentence come first. \n" + text + "\n And some words of another one come last."
    moved = [(start - 48, end - 48, kind) for start, end, kind in map(tuple, find_pii(long))]
    assert moved == [tuple(span) for span in find_pii(text)]


@pytest.mark.parametrize("style", ["placeholder", "same_length", "fineweb"])
def test_outside_the_spans_nothing_changes(style):
    texts = [unmarked(marked)[0] for marked in POSITIVES + NEGATIVES]
    masked, columns = mask_pii(texts, style)
    for number, (text, after) in enumerate(zip(texts, masked)):
        spans = find_pii(text)
        rest, reached = after, 0
        for start, end, kind in spans:
            kept = text[reached:start]
            assert rest.startswith(kept)
            rest, reached = rest[len(kept) :], end
            mask = {"same_length": text[start:end], "fineweb": FINEWEB.get(kind), "placeholder": None}[style]
            if style == "same_length":
                assert not re.search(r"[1-9a-wyz]", rest[: len(mask)]) or not mask.isascii()
                rest = rest[len(mask) :]
            else:
                rest = rest.removeprefix(next(m for m in mask or (f"<{kind.upper()}>",) if rest.startswith(m)))
        assert rest == text[reached:]
        assert columns["pii_characters"][number] == sum(end - start for start, end, _ in spans)
        assert all(columns[f"pii_{kind}"][number] == sum(span.kind == kind for span in spans) for kind in KINDS)
    if style == "same_length":
        assert [len(text) for text in texts] == [len(text) for text in masked]


def test_masks_are_readable_and_masked_text_is_clean():
    text = "Mail anna@posteo.de or bob@posteo.de, call +44 20 7946 0958, from 8.8.8.8."
    assert mask_pii([text])[0] == ["Mail <EMAIL> or <EMAIL>, call <PHONE>, from <IP>."]
    assert mask_pii([text], "same_length")[0] == ["Mail xxxx@xxxxxx.xx or xxx@xxxxxx.xx, call +00 00 0000 0000, from 0.0.0.0."]
    fineweb = "Mail email@example.com or firstname.lastname@example.org, call <PHONE>, from 22.214.171.124."
    assert mask_pii([text], "fineweb")[0] == [fineweb]
    texts = [unmarked(marked)[0] for marked in POSITIVES]
    again = mask_pii(mask_pii(texts)[0])[1]
    assert again["pii_characters"].sum() == 0


def test_only_the_kinds_asked_for_are_masked():
    text = "anna@posteo.de from 8.8.8.8 and 10.0.0.1"
    masked, columns = mask_pii([text, ""], kinds=["ip"])
    assert masked == ["anna@posteo.de from <IP> and 10.0.0.1", ""]
    assert sorted(columns) == ["pii_characters", "pii_ip"] and columns["pii_ip"].tolist() == [1, 0]
    assert mask_pii([text], kinds=["ip"], public_ips_only=False)[0] == ["anna@posteo.de from <IP> and <IP>"]
    with pytest.raises(UserError, match="kinds: e-mail: there are"):
        mask_pii([text], kinds=["e-mail"])
    with pytest.raises(UserError, match="style: stars: there are"):
        mask_pii([text], style="stars")


@pytest.mark.parametrize("address", ["2a00:1450:4001:80b::200e", "2a00:1450:4001:080b:0123:4567:89ab:cdef"])
@pytest.mark.parametrize("form", ["{}", "{}: refused", "{}:", "ip:{}: refused", "[{}]:443", "http://[{}]/", "{},{}: no"])
def test_an_ipv6_address_may_stand_before_a_colon(form, address):
    text = form.format(address, address)
    assert [text[start:end] for start, end, _ in find_pii(text, kinds=["ip"])] == [address] * form.count("{}")


def test_a_port_may_follow_a_full_ipv6_address_but_no_ninth_group():
    full = "2a00:1450:4001:080b:0123:4567:89ab:cdef"
    assert mask_pii([f"{full}:443"], kinds=["ip"])[0] == ["<IP>:443"]
    assert not find_pii(f"{full}:cdef", kinds=["ip"])


def test_a_phone_number_is_national_in_the_regions_given():
    text = "Write or try 01 42 68 53 00 instead."
    assert [span.kind for span in find_pii(text)] == ["phone"]
    assert find_pii(text, regions=["US"]) == []


def test_earlier_kinds_win_where_spans_overlap():
    text = "password=Anna12345@posteo.de"
    assert [text[start:end] for start, end, _ in find_pii(text, kinds=["secret", "email"])] == ["Anna12345@posteo.de"]
    assert find_pii(text, kinds=["email"])[0].kind == "email"
    assert replace_spans("abcdef", [Span(1, 2, "ip"), Span(2, 4, "email")]) == "a<IP><EMAIL>ef"


def test_folding_equals_its_plain_twin():
    draw = random.Random(0)
    texts = [unmarked(marked)[0] for marked in POSITIVES]
    texts += [
        "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0x3100), draw.randrange(0x110000)])) for _ in range(50))
        for _ in range(200)
    ]
    texts += ["", "\0", "𝟒𝟐 ４２ ٤٢ ४२", "\ud800é\u200b"]
    for text in texts:
        folded, at = fold(text)
        assert folded == "".join(map(_folded, text))
        assert (at.tolist() if at is not None else list(range(len(text)))) == [i for i, c in enumerate(text) if _folded(c)]


def test_plain_addresses_equal_those_of_one_slow_expression():
    slow = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9-]+\.)+(?:com|org|de)\b")
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choices(["a", "b1", ".", "@", " ", "x.com", "y.de", ",", "(", "-", "c@d.org"], k=30))
        expected = [match.span() for match in slow.finditer(text)]
        got = {(span.start, span.end) for span in find_emails(text)}
        assert all(span in got or any(a <= span[0] and span[1] <= b for a, b in got) for span in expected), text


def test_the_gate_for_numbers_lets_all_of_them_through():
    for marked in POSITIVES:
        folded = fold(unmarked(marked)[0])[0]
        if not has_long_number(folded):
            assert not [*find_cards(folded), *find_ssns(folded), *find_phones(folded)], marked


def test_check_digits():
    assert luhn("79927398713") and not luhn("79927398710")
    assert is_card("4111111111111111") and not is_card("4111111111111112") and not is_card("0000000000000000")
    iban = "DE89370400440532013000"
    assert [tuple(span) for span in find_ibans(iban)] == [(0, 22, "iban")]
    for place in range(4, 22):  # mod 97 finds every changed digit
        changed = iban[:place] + str((int(iban[place]) + 1) % 10) + iban[place + 1 :]
        assert list(find_ibans(changed)) == []


HOSTILE = [
    "1",
    "1 ",
    ".",
    "1.",
    "@",
    "a@",
    "a@b.",
    " at ",
    "x at y dot z ",
    ":",
    "a:b",
    "(",
    "password=",
    "eyJ",
    "eyJaaaaaaaaa.",
    "sk-",
    "-----BEGIN PRIVATE KEY-----",
    "a",
    "DE89",
    "+1 ",
    "[at]",
    " at x.",
    "&#64;",
    "_aaaaaaaaaaaaaaaa",
    "-a",
    "Tel a b c: 20 20 ",
    "curl ",
    "x(a)b.",
    "://a:b",
    "123-45-",
    "tel 5551234567 ",
    "１",
    "\u200b",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_text_takes_linear_time(piece):
    text = piece * (300_000 // len(piece))
    masked, columns = mask_pii([text])  # quadratic search would take hours
    assert len(columns["pii_email"]) == 1 and masked[0] is not None


def test_columns_do_not_depend_on_the_batch():
    texts = [unmarked(marked)[0] for marked in POSITIVES[:60]] + [""]
    together = mask_pii(texts)
    alone = [mask_pii([text]) for text in texts]
    assert together[0] == [masked[0] for masked, _ in alone]
    for name, column in together[1].items():
        assert column.dtype == np.int32 and column.tolist() == [columns[name][0] for _, columns in alone]
