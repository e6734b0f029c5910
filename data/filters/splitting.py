"""What is known of characters and words to split a text without white space as spaCy's English tokenizer does.

"(don't" gives "(", "do", "n't". The published filters count such words: datatrove 0.10.1 does so for all text unless it is
given another language. Marks and units come off both ends, one of each at a step, until what is left is an exception or has
none. An address then stays whole, other text is cut at marks between letters. At last, parts that make an exception get its
words. So a sentence in Chinese, Japanese or Thai is about one word.

The rules are spaCy 3.8's (lang/punctuation.py, lang/en, tokenizer.pyx). One is left out: there, parts on both sides of a blank,
as in "(a): ()", can hide an exception. data/filters/compiled/splitting.py applies them. The plain twin is in
tests/data/filters/plain_splitting.py: the rules as regular expressions.
"""

import functools
import re
from collections.abc import Collection, Iterable
from itertools import accumulate

import numpy as np

from data.filters.characters import ICONS, LETTERS, LOWER, UPPER, is_alphanumeric
from data.filters.compiled import splitting as loops
from data.filters.compiled.splitting import Tables

MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
CURRENCIES = "US$ C$ A$ $ £ € ¥ ฿ ₽ ﷼ ₴ ₠ ₡ ₢ ₣ ₤ ₥ ₦ ₧ ₨ ₩ ₪ ₫ ₭ ₮ ₯ ₰ ₱ ₲ ₳ ₵ ₶ ₷ ₸ ₹ ₺ ₻ ₼ ₾ ₿".split()
BEFORE = MARKS + QUOTES + "§%=—–"  # these come off the beginning, as icons do
AFTER = MARKS + QUOTES + "—–"  # and these off the end
BEFORE_FULL_STOP = MARKS + QUOTES + "|%²-+0123456789"  # and LOWER: a full stop behind them is a word
UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb "
    "MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа Па мбар Кб КБ "
    "кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب اكواب"
).split()  # "тбكم" is theirs
AFTER_DIGIT = (*UNITS, *CURRENCIES, "+")  # these come off the end behind a digit

# Texts that the rules do not split as English wants, as spaCy's English tokenizer has them.
_LETTERS = "a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü."
_ABBREVIATIONS = (
    "a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. co. Co. Corp. Inc. Ltd. Bros. Adm. Gen. Gov. Dr. Jr. Md. Messrs. Mr. "
    "Mrs. Ms. Mo. Mont. Ph.D. Prof. Rep. Rev. Sen. St. Mt. D.C. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. Ak. Ala. Ariz. Ark. Calif. "
    "Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss. Neb. Nebr. Nev. Okla. Ore. Pa. "
    "Tenn. Va. Wash. Wis. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec."
)
_SPELLINGS = (
    "' '' 's 'S ‘s ‘S 'd 're 'll ll 'em em 'nuff nuff 'bout 'cause 'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz ma'am Ma'am o'clock "
    r"O'clock and/or w/o C++ — \t \n \") <space>"
)
_DROPPED_G = "doin goin havin lovin nothin nuthin ol somethin"  # also with an apostrophe behind
_EMOTICONS = r"""
    :) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :(((
    :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3
    :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V
    v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬)
    ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""
# Contractions: subjects or verbs, and what can follow them. A bar stands where a word begins.
_CONTRACTIONS = (
    ("i", "|'m |'m|a"),
    ("i you he she it we they", "|'ll |'d |'ll|'ve |'d|'ve"),
    ("i you we they", "|'ve"),
    ("you we they", "|'re"),
    ("he she it", "|'s"),
    ("who what when where why how there that this these those", "|'ll |'d |'ll|'ve |'d|'ve"),
    ("who what when where why how there that this", "|'s"),
    ("who what when where why how there these those", "|'re |'ve"),
    ("ca could do does did had may might must need ought sha should wo would", "|n't |n't|'ve"),
    ("ai are is was were have has dare", "|n't"),
    ("could might must should would not", "|'ve"),
)
_NO_CONTRACTIONS = "ill its hell shell shed were well whore"  # words that only look so
_JOINED = "can|not gon|na got|ta"  # also with a capital
_OTHERS = "y'|all y|all how|'d|'y How|'d|'y let|'s Let|'s c'm|on C'm|on"


def _exceptions() -> dict[str, tuple[str, ...]]:
    whole = f"{_LETTERS} {_ABBREVIATIONS} {_SPELLINGS} {_EMOTICONS}".split()
    for word in _DROPPED_G.split():
        whole += (spelling + mark for spelling in (word, word.capitalize()) for mark in ("", "'"))
    cut = _OTHERS.split() + [f"{hour}|{half}" for hour in range(1, 13) for half in ("am", "a.m.", "pm", "p.m.")]
    cut += (f"°|{scale}|." for scale in "cfkCFK")
    cut += (spelling for word in _JOINED.split() for spelling in (word, word.capitalize()))
    for heads, endings in _CONTRACTIONS:
        for ending in (*endings.split(), *endings.replace("'", "").split()):
            cut += (spelling + ending for head in heads.split() for spelling in (head, head.capitalize()))
    table = {word: (word,) for word in whole} | {word.replace("|", ""): tuple(word.split("|")) for word in cut}
    for word in _NO_CONTRACTIONS.split():
        table.pop(word, None)
        table.pop(word.capitalize(), None)
    curly = {word.replace("'", "’"): tuple(part.replace("'", "’") for part in parts) for word, parts in table.items()}
    return table | curly


EXCEPTIONS = _exceptions()  # text: its words
LONGEST_EXCEPTION = max(map(len, EXCEPTIONS))


@functools.cache
def tables() -> Tables:
    """Return the tables for the compiled loops. It takes about a tenth of a second, once a process."""
    classes = np.where(is_alphanumeric(loops.CODES), loops.WORD, 0).astype(np.uint16)
    marks = {
        loops.QUOTE: QUOTES,
        loops.BEFORE: BEFORE,
        loops.AFTER: AFTER,
        loops.BEFORE_FULL_STOP: BEFORE_FULL_STOP,
        loops.CURRENCY: "".join(mark for mark in CURRENCIES if len(mark) == 1),
        loops.INNER: ".…+-*^,–—~:<>=/",
        loops.WORD: "_",
    }
    for bit, some in marks.items():
        classes[list(map(ord, some))] |= bit
    for some, bit in ((LETTERS, loops.LETTER), (LOWER, loops.LOW), (UPPER, loops.HIGH), (ICONS, loops.ICON | loops.INNER)):
        for match in re.finditer("(.)-(.)|.", some, re.DOTALL):
            first, last = match.groups() if match[1] else (match[0], match[0])
            classes[ord(first) : ord(last) + 1] |= bit
    exceptions, after_digit = _placed(EXCEPTIONS), _placed(AFTER_DIGIT)
    words, parts = np.zeros((2, len(exceptions)), np.uint16)
    longest = LONGEST_EXCEPTION, max(map(len, AFTER_DIGIT))
    made = Tables(classes, exceptions, words, parts, after_digit, *longest)
    texts, sizes = "".join(EXCEPTIONS), np.array(list(map(len, EXCEPTIONS)), np.int32)
    begins, is_cut = np.cumsum(sizes, dtype=np.int64) - sizes, np.zeros(len(texts) + 1, bool)
    # How the rules cut them if they know no exception.
    loops.cut(np.array(list(map(ord, texts)), np.uint32), begins, sizes, made._replace(longest=0), is_cut)
    for (text, own), begin in zip(EXCEPTIONS.items(), begins.tolist()):
        slot = loops.find(exceptions, _key(text))
        words[slot] = _mask(accumulate(map(len, own[:-1])))
        parts[slot] = _mask(np.flatnonzero(is_cut[begin : begin + len(text)]).tolist())
    return made


def _placed(texts: Collection[str]) -> np.ndarray:
    keys = np.zeros(1 << (4 * len(texts)).bit_length(), np.uint64)
    for text in dict.fromkeys(texts):
        slot = -1 - loops.find(keys, _key(text))
        keys[slot] = _key(text)
    return keys


def _key(text: str) -> np.uint64:
    return np.uint64(loops.key_of(np.array(list(map(ord, text)), np.uint32), 0, len(text)))


def _mask(places: Iterable[int]) -> int:
    """Return a number whose bit k is set for each place k > 0."""
    return sum(1 << k for k in places) & ~1
