"""Which language a text is in, as langdetect says (Shuyo 2010), which IFEval's own checker asks.

Another detector would give other scores, above all of text in capitals: of a word in capitals langdetect reads the first letter
alone, and it takes "HELLO WORLD" for Somali. It draws its features at random; here every text is judged with the same seed.
"""

import functools
from pathlib import Path
from types import ModuleType

from lm.errors import UserError


@functools.lru_cache(maxsize=1024)
def language(text: str) -> str | None:
    """Return a text's ISO 639-1 code ("zh-cn", "zh-tw" of Chinese), or "unknown"; None of one with nothing to judge, such as
    "123".

    >>> language("the cat is on the mat")
    'en'

    Raises: UserError: langdetect is not installed.
    """
    detector = _factory().create()
    detector.append(text)
    try:
        return detector.detect()
    except _langdetect().LangDetectException:
        return None


def known_languages() -> list[str]:
    return _factory().get_lang_list()


@functools.cache
def _factory():
    where = _langdetect().detector_factory
    factory = where.DetectorFactory()
    profiles = sorted(Path(where.PROFILES_DIRECTORY).glob("[a-z]*"))  # in an order that no file system decides
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in profiles])
    factory.set_seed(0)
    return factory


def _langdetect() -> ModuleType:
    try:
        import langdetect
    except ImportError:
        raise UserError("language detection needs a package that is not installed: pip install langdetect") from None
    return langdetect
