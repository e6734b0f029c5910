"""Words as the Penn Treebank has them (MacIntyre 1995), the way NLTK 3.10.4 splits them: IFEval counts capital words so.

Punctuation is a word of its own, "don't" is two words, "do" and "n't"; a hyphenated word is one, and so is "U.S.".
"""

import re

from lm.evals.tasks.ifeval.sentences import sentences

APART = r" \g<0> "
RUN_TOGETHER = r"can(?=not\b)|d(?='ye\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|more(?='n\b)|wan(?=na\s)"
# In this order: some rules look at what others have set apart. The last full stop of a sentence is apart, others are not.
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[«“‘„]|`+", APART),
        (r'^"', "``"),
        (r"``", APART),
        (r"(?<=[ (\[{<])(?:\"|'')", " `` "),
        (r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "' "),
        (r"(?<=[^.])\.(?=[])}>\"'»”’ ]*+\s*$)", APART),
        (r"([:,])(\D)", r" \1 \2"),
        (r"[:,]$", APART),
        (r"\.{2,}", APART),
        (r"[;@#$%&\u2012-\u2015?!]", APART),
        (r"(?<=[^'])' ", " ' "),
        (r"[*\][(){}<>]|--", APART),
        (r"\A|\Z", " "),
        (r"[»”’]", APART),
        (r"''|\"", " '' "),
        (r"\s+", " "),
        (r"(?<=[^' ])(?:'[sSmMdD]?) ", APART),
        (r"(?<=[^' ])(?:'(?:ll|LL|re|RE|ve|VE)|n't|N'T) ", APART),
        (rf"(?i)\b({RUN_TOGETHER})('ye|'n|not|me|na|ta)", r" \1 \2 "),
        (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
    )
)


def words(text: str) -> list[str]:
    """
    >>> words("I can't stop. U.S.A.-made, isn't it?")
    ['I', 'ca', "n't", 'stop', '.', 'U.S.A.-made', ',', 'is', "n't", 'it', '?']
    """
    found = []
    for sentence in sentences(text):
        for pattern, replacement in RULES:
            sentence = pattern.sub(replacement, sentence)
        found += sentence.split()
    return found
