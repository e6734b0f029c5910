"""Where files of buckets lie on this machine: a folder for each URL below ~/.cache/lmcraft/buckets (or XDG_CACHE_HOME).

    runs/URL      the mirror of a workdir, which its run writes (lm/bucket/mirror.py)
    copies/URL    a copy for reading: a model, a tokenizer or a dataset (lm/bucket/copies.py)
    URL@lock, URL@record, URL@objects    beside them; no quoted URL holds an @

In memory a config holds local paths; in files, messages and reports it holds URLs, so that another machine can go on.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lm.bucket.store import is_url
from lm.errors import UserError
from lm.files import compile_cache

KEYS = ("init_from", "checkpoint", "tokenizer", "chat_template", "distill.teacher")  # config keys that a copy stands in for
LONGEST = 240  # characters of a folder's name


def _place(kind: str, url: str) -> Path:
    name = quote(url.rstrip("/"), safe="")
    if len(name) > LONGEST:
        raise UserError(
            f"{url}: the URL is too long for a folder's name in the cache: use one of less than {LONGEST} characters"
        )
    return _root() / kind / name


def mirror_of(url: str) -> Path:
    return _place("runs", url)


def copy_of(url: str) -> Path:
    return _place("copies", url)


def as_urls(text: str) -> str:
    """Return a text with the URL in place of each path of a mirror or a copy."""
    try:
        root = re.escape(str(_root()))
    except UserError:
        return text
    return re.sub(rf"{root}/(?:runs|copies)/([\w.~%-]+)", lambda found: unquote(found[1]), text)


def with_urls(value: Any) -> Any:
    """Return a JSON value with URLs in place of local paths."""
    return json.loads(as_urls(json.dumps(value)))


def urls_in(config: Any) -> list[tuple[str, Any, str]]:
    """Return (key, its section, the key in it) for each of KEYS that holds a URL. config: a ConfigDict or a dict."""
    urls = []
    for key in KEYS:
        section, _, last = key.rpartition(".")
        values = config.get(section) if section else config
        if hasattr(values, "get") and is_url(values.get(last)):
            urls.append((key, values, last))
    return urls


def with_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the paths of copies in place of the URLs of KEYS. Nothing is fetched."""
    config = copy.deepcopy(config)
    for _, values, last in urls_in(config):
        values[last] = str(copy_of(values[last]))
    return config


def _root() -> Path:
    try:
        return compile_cache.home() / "buckets"
    except RuntimeError:
        raise UserError("files of buckets are kept in the cache, and there is no home folder: set XDG_CACHE_HOME") from None
