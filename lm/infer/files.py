"""Files of images and sound that a user names, as parts of a message."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.chat.media.encoding import Towers
from data.media.parts import MAX_BYTES
from lm.errors import UserError
from lm.files.untrusted import content


def parts_of(files: Mapping[str, Sequence[str]], towers: Towers | None) -> list[dict[str, Any]]:
    """Return a part of a message's content for each file.

    files: their paths by kind, "image" or "audio". towers: of the model; None: it reads text.
    Raises: UserError for a file that cannot be read, or one that the model has no encoder for.
    """
    found = []
    for kind, paths in files.items():
        for path in paths:
            if towers is None or getattr(towers, kind) is None:
                raise UserError(f"--{kind}={path}: this model has no encoder of {kind}; leave it out, or take another model")
            try:
                file = base64.b64encode(content(Path(path), MAX_BYTES[kind])).decode()
            except (OSError, ValueError) as error:
                raise UserError(f"--{kind}={path}: {getattr(error, 'strerror', None) or error}; name a file") from None
            found.append({"type": kind, kind: f"data:;base64,{file}"})
    return found


def with_parts(text: str, parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the content of a message: the parts, and the text after them."""
    return [*parts, {"type": "text", "text": text}] if parts else text
