"""Texts that the rules of data/filters/splitting.py do not split as English wants: contractions, abbreviations and emoticons.

They are those of spaCy 3.8's English tokenizer; a test holds the two tables together.
"""

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


def _table() -> dict[str, tuple[str, ...]]:
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


EXCEPTIONS = _table()  # text: its words
