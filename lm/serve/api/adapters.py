"""Names and folders of the adapters that clients may load: only those in one folder."""

import re
from pathlib import Path

from lm.serve.api.errors import ApiError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def confined(root: Path | None, name: str, path: str | None) -> Path:
    """Return the folder of an adapter in `root`; path: relative to it, default: the name.

    Raises: ApiError if there is no root, the name is none, or the folder is not inside root, also by way of a link.
    """
    if root is None:
        raise ApiError(403, "this server loads no adapters: it was started without adapters.dir")
    if not NAME.fullmatch(name):
        raise ApiError(400, "lora_name: up to 64 letters, digits, '.', '_' and '-', the first one a letter or a digit",
                       param="lora_name")  # fmt: skip
    try:
        folder = (root / (path if path is not None else name)).resolve()
        inside = folder.is_relative_to(root.resolve()) and folder != root.resolve() and folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        inside = False
    if not inside:  # the same words whether such a file exists elsewhere or not
        raise ApiError(404, "lora_path: no such folder in adapters.dir", param="lora_path")
    return folder
