"""Import the libraries of requirements/media.txt when they are needed; training on text does without them."""

import importlib
from types import ModuleType

from lm.errors import UserError

INSTALL = "install it with pip install -r requirements/media.txt"


def library(name: str, purpose: str) -> ModuleType:
    """Return an imported module. Raises: UserError with what to install, "…: reading images needs Pillow; …"."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError if its C library is missing
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{purpose} needs the package {name.partition('.')[0]}{reason}; {INSTALL}") from None
