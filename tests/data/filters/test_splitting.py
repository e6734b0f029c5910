"""Words of a text without white space: as spaCy's English tokenizer has them, by the plain rules and by the compiled ones."""

import random
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from data.filters.splitting import EXCEPTIONS
from data.filters.words import Words
from tests.data.filters.plain_splitting import split

# What spaCy 3.8 gives: texts without white space, with bars between them and blanks between their words.
SPLIT = {
    "marks": "word|( do n't|* * bold * *|[ 1 ] :|naïve|...|.|wait ...|a ... b|… … x|x ……|end . Begin|end.begin|"
    "a , b|( foo ):|x )",
    "hyphens": "well - known|a -- b|a----b|1990–1995|1 - 2|x — y|+1|5 +|a+|x = y|path / to|10:30",
    "contractions": "we 'll ,|dog ’s|can not .|should n't 've|John'll|It ’s .|i d|i d.|its|dogs '|rock'n'roll|y' all|did nt",
    "abbreviations": "e.g. ,|Mr.|U.S.|USA .|a.|É.|ÉÉ .|( a.m. )|10 a.m. ,|and/or / not|C++ .|Id.|x.y .",
    "emoticons": ":)|:-)) !|( 8)|x :)|ok :)|) ): (|¯\\(ツ)/¯|(ಠ_ಠ)|< 3<3|):|( :)",
    "units": "10 km|€ 5 .|3.14|US$ 5|5 US$|5 km/h ,|5м.x|25 ° C .|25 ° F .|100 % .|5 كم .|5 ГБ|v1.2.3 ,",
    "addresses": "( http://foldoc.org/ ) .|< https://example.org/a?b=c > ,|[ https://example.com/a_(b)?x=1#z ] ,|"
    "http://example.com/a(b)c ) .|me@example.org .|< me@example.co.uk > ;|user:pass@example.org :|"
    "http://8.8.8.8/dns|http://192.168.0.1 / admin|www.example.org/.|localhost:8080 / path|中文.com|"
    "http://x / y|a@b|@@a.bc",
    "Cyrillic": "Привет ! »|« Привет , мир »|слово . Слово|5 км .|из - за|т.е .|д .",
    "Greek": "Γειά !|« Γειά . »|Καλημέρα;Τι|άνοιξη . Στο|π.χ .",
    "Arabic": "مرحبا ،|ما ؟|كتاب ۔|و«كتاب »|( كتاب ) .|كتاب .",
    "Hebrew": '" שלום " ,|צה"ל|ת . ד .|בית - ספר',
    "Devanagari": 'नमस्ते ।|है । "|( हिन्दी ) ।|काम - काज|है .',
    "Thai": 'สวัสดีครับ|ไทย ) "|พ.ศ.2566|฿ 50|ๆ.',
    "Korean": "한국어입니다 .|했다.그리고|“ 안녕”이라고|그것은 ,|( 예 ) .",
    "Japanese": "カタカナ・ひらがな 。|「 東京」です 。|日本語です、と|第1章 : 概要|Windows版|ゲーム ！",
    "Chinese": "中文，句子。下一句 ！|“ 你好 ” 。|你好 , 世界|（ 中文 ）|词 — 词",
    "icons": "😀 hello|👍 🏽 !|🥲x|© 2024|★ ★ x|été .|\u200bx|x ™",
}


@pytest.mark.parametrize("kind", SPLIT)
def test_words(kind):
    want = [line.split() for line in SPLIT[kind].split("|")]
    chunks = ["".join(words) for words in want]
    assert [split(chunk) for chunk in chunks] == want and words_of(chunks) == want


def test_nothing_is_lost_or_added():
    marks = "ab.,'\"()-1+$€…:/@n’té日 "
    for seed in range(2000):
        chunk = "".join(marks[(seed * 7919 + k * k * 31 + k * seed) % len(marks)] for k in range(1 + seed % 12)).replace(
            " ", ""
        )
        if chunk:
            assert "".join(split(chunk)) == chunk, chunk
            assert all(split(chunk))


def test_long_chunks_are_split_as_short_ones():
    size = 1 << 12
    for chunk, words in (
        ("(" * size, ["("] * size),
        ("中" * size + "。", ["中" * size, "。"]),
        ("a@" * size, ["a@" * size]),
        ("a." * size + "bc/", ["a." * size + "bc/"]),
        ("." * size, ["." * size]),
        ("★:)" * size, ["★", ":)"] * size),
    ):
        assert words_of([chunk])[0] == words


def words_of(chunks: list[str]) -> list[list[str]]:
    words = Words(chunks)
    return [words.spelled(n) for n in range(len(chunks))]


PIECES = [
    *"abXYzZ.,'\"()-+0129$€…:/@n’té日本語かなカナー。、「」한국어é;!?[]{}<>_#*&|%=~—–‘“”°²µ^\\`§¿¡·।،؟عربעברहिन्दीไทยАбвгΑβγ",
    *"😀★🥲©ⅷ①٣½ßDžʼﬁＡｂ０ǅƻʔ\u0301\u200b\u00ad\ufeff\U00020000",
    *":// http:// https:// www. mailto: @ foo.org .com /path ?q= #x :80 192.168.1.1 8.8.8.8 1.2.3 km m/s kg МБ км/ч".split(),
    *"n't 'll 's ’s don't I'm e.g. U.S. Mr. a.m. and/or C++ doin' (a) -- --- …… ... 10 US$ C$ °C.".split(),
    *":) :-( ): <3 o.O 8) xD ¯\\(ツ)/¯ ಠ_ಠ".split(),
]


def random_chunks(seed: int, count: int) -> list[str]:
    """Return texts without white space of 1 to 12 PIECES; a tenth have any other character too."""
    draw, chunks = random.Random(seed), set()
    while len(chunks) < count:
        pieces = [draw.choice(PIECES) for _ in range(draw.randint(1, draw.choice((3, 6, 12))))]
        if draw.random() < 0.1:
            pieces.insert(draw.randint(0, len(pieces)), chr(draw.randint(0x21, 0xD7FF)))
        chunks.add("".join("".join(pieces).split()) or "x")
    return sorted(chunks)


def test_compiled_rules_are_the_plain_ones():
    library = Path(sysconfig.get_path("stdlib"))
    texts = [*topics.values(), *(path.read_text(errors="replace") for path in sorted(library.glob("a*.py")))]
    chunks = {chunk for text in texts for chunk in text.split()} | {"x" * 1001 + ".", "\ud800x."}
    chunks = [*sorted(chunks), *random_chunks(1, 10_000)]
    assert words_of(chunks) == [split(chunk) for chunk in chunks]


def test_words_and_exceptions_are_those_of_spacy():
    import spacy

    english = spacy.blank("en").tokenizer
    chunks = [*sorted(set(" ".join(topics.values()).split()))[::5], *random_chunks(2, 3000)]
    assert [split(chunk) for chunk in chunks] == [[word.text for word in english(chunk)] for chunk in chunks]
    rules = {text: tuple(word.text for word in english(text)) for text in english.rules if not any(map(str.isspace, text))}
    assert EXCEPTIONS == rules


@pytest.mark.slow
def test_words_of_every_character_are_those_of_spacy():
    import spacy

    english = spacy.blank("en").tokenizer
    characters = [
        c for c in map(chr, (*range(0x21, 0xD800), *range(0xE000, 0x20000), *range(0x2A000, 0x2FB00))) if not c.isspace()
    ]
    chunks = [f"a{c}b" for c in characters] + [f"{c}.{c}a,{c}." for c in characters] + [f"a.a{c}{c}" for c in characters]
    chunks += random_chunks(3, 100_000)
    for k in range(0, len(chunks), 10_000):
        some = chunks[k : k + 10_000]
        with english.vocab.memory_zone():
            want = [[word.text for word in english(chunk)] for chunk in some]
        different = [(chunk, have, words) for chunk, have, words in zip(some, words_of(some), want) if have != words]
        assert not different, different[:5]
