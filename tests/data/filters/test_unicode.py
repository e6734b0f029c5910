"""Unicode repair: what ftfy repairs is repaired, correct text is left as it is, and the fast test misses nothing."""

import random
import unicodedata

import numpy as np
import pytest

pytest.importorskip("ftfy")

from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

from data.filters import unicode
from data.filters.unicode import may_be_faulty, repair

CLEAN = [
    "",
    "plain text\twith a tab\nand lines\f",
    "Curly “quotes”, ‘single’ ones – and dashes… cost 5 € or £3, 20 °C, ½ litre, naïve café",
    "„Anführungszeichen“ über Größe, Straße, Öl",
    "«Guillemets» : l'œuvre, ça, où, Noël",
    "¿Qué? ¡Sí! mañana, año, Ñandú",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Zażółć gęślą jaźń. Łódź, ŁÓDŹ",
    "Съешь же ещё этих мягких французских булок. Привет, мир! «Да» — №5",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ώρα, Άνθρωπος",
    "日本語の文章。「引用」（全角）ＡＢＣ１２３、カタカナ",
    "한국어 문장입니다. 中文，标点。",
    "نص عربي، و\u200cنیم‌فاصله فارسی",
    "हिन्दी में क्\u200dष, विराम।",
    "emoji 👩\u200d👩\u200d👧 and 🇩🇪, 𝒳 = 𝟒",
    "Fish &amp; chips, ﬁne ligature ﬂ",
    "x² ± 3·10⁻⁵, a × b ÷ c ≤ ∞, ∑∫√",
    "│ box ├── tree └── leaf",
]
INTENDED = [
    "schöne Grüße",
    "l'été déjà à Noël",
    "It’s “quoted” – done…",
    "año mañana ¿qué?",
    "Привет, мир",
    "日本語です",
    "naïve café ✔",
    "5 € é",
]
FAULTY = {
    "one\r\ntwo\rthree\u2028four": "one\ntwo\nthree\nfour",
    "soft\u00adhyphen, zero\u200bwidth, \ufeffmark, word\u2060joiner": "softhyphen, zerowidth, mark, wordjoiner",
    "bell\x07, null\0, del\x7f, \x1b[31mred\x1b[0m": "bell, null, del, red",
    "cafe\u0301 A\u030angstro\u0308m": "café Ångström",
    "lone \ud83d surrogate, paired \ud83d\ude00 ones": "lone \ufffd surrogate, paired 😀 ones",
    "c1 \x93quotes\x94": "c1 “quotes”",
}


def mojibake() -> list[tuple[str, str]]:
    pairs = []
    for text in INTENDED:
        for encoding in ("windows-1252", "latin-1", "windows-1251", "macroman"):
            try:
                pairs.append((text.encode().decode(encoding), text))
            except UnicodeDecodeError:
                pass
    return pairs


def test_clean_text_is_the_same_object():
    repaired, columns = repair(CLEAN)
    assert all(after is before for before, after in zip(CLEAN, repaired))
    assert all(column.dtype == np.int32 and not column.any() for column in columns.values())
    assert not may_be_faulty(CLEAN).any()


def test_faults_are_repaired_and_counted():
    repaired, columns = repair([*FAULTY, "fine", "fine\nMÃ¼nchen\nschÃ¶n\r\n"])
    assert repaired == [*FAULTY.values(), "fine", "fine\nMünchen\nschön\n"]
    assert columns["unicode_line_ends"].tolist() == [3, 0, 0, 0, 0, 0, 0, 1]
    assert columns["unicode_invisible"].tolist() == [0, 4, 0, 0, 0, 0, 0, 0]
    assert columns["unicode_lines"].tolist() == [0, 0, 1, 1, 1, 1, 0, 2]


def repair_slowly(text: str) -> str:
    """Return what `repair` makes of a text, by asking ftfy about all of it."""
    import ftfy

    text = unicode._INVISIBLE.sub("", unicode._LINE_END.sub("\n", text))
    fixed = unicode._INVISIBLE.sub("", ftfy.fix_text(text, unicode._config()))
    return unicodedata.normalize("NFC", fixed)


def test_mojibake_is_decoded_as_ftfy_decodes_it():
    pairs = mojibake()
    repaired, _ = repair([text for text, _ in pairs])
    assert repaired == [repair_slowly(text) for text, _ in pairs]
    assert sum(after == intended for after, (_, intended) in zip(repaired, pairs)) >= 0.75 * len(
        pairs
    )  # the rest is beyond ftfy


def test_repairing_twice_changes_nothing_more():
    once, _ = repair([*FAULTY, *(text for text, _ in mojibake())])
    again, _ = repair(once)
    assert again == once


def test_the_fast_test_misses_nothing():
    draw = random.Random(0)
    odd = [chr(code) for code in range(0x80, 0x10000) if any(chr(code) in said for said in MOJIBAKE_CATEGORIES.values())]
    odd += list("ÂÃÎÐØÙàœŒв ЂВГРСўΒΓΞΟβāα€ЖжяЯçéöÖÀ┐╬") + list("aZ .,'\n\u200b\u0301")
    texts = ["".join(draw.choices(odd, k=draw.randrange(1, 8))) for _ in range(6000)]
    bad = np.array([BADNESS_RE.search(text) is not None for text in texts])
    fast = may_be_faulty(texts)
    assert bad.any() and not (bad & ~fast).any(), [text for text, b, f in zip(texts, bad, fast) if b and not f][:5]
    changed = [repair_slowly(text) != text for text in texts[:1500]]
    assert not (np.array(changed) & ~fast[:1500]).any()
    assert repair(texts[:1500])[0] == [repair_slowly(text) for text in texts[:1500]]


def test_a_text_is_tested_alike_in_every_batch():
    texts = CLEAN + list(FAULTY) + [text for text, _ in mojibake()] + ["é" * 40_000, "Ã© " * 20_000]
    assert may_be_faulty(texts).tolist() == [bool(may_be_faulty([text])[0]) for text in texts]
    assert may_be_faulty(texts[::-1]).tolist() == may_be_faulty(texts)[::-1].tolist()
    assert repair([])[0] == []
