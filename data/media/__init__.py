"""Images and audio in data: decode them safely, prepare them for the towers of a model, find them in messages.

images.py and audio.py decode a file under limits, tiles.py and spectrograms.py prepare the result. parts.py reads the content
parts of messages, prompts.py writes their tokens into a prompt. data/chat/media joins these.
"""

import importlib
from types import ModuleType

from lm.errors import UserError
from lm.files.untrusted import shown

INSTALL = "install it with pip install -r requirements/media.txt"


def library(name: str, purpose: str) -> ModuleType:
    """Return a module of requirements/media.txt, which training on text does without.

    Raises: UserError with what to install, "…: reading images needs Pillow; …".
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError if its C library is missing
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{purpose} needs the package {name.partition('.')[0]}{reason}; {INSTALL}") from None


def reason(error: Exception) -> str:
    """Return on one line what a library says about a file. soundfile begins with "Error opening <…>: "."""
    return shown(" ".join(str(error).split()).rpartition(">: ")[2])[:100] or type(error).__name__
