"""The flags of a verb that name places in buckets: models are fetched, and a workdir gets its mirror."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm.bucket import copies, mirror
from lm.bucket.places import KEYS
from lm.bucket.store import is_url
from lm.errors import UserError

MODELS = ("checkpoint", "from")  # flags of a command without a config that name a model
WRITERS = ("train", "align", "evaluate")  # verbs whose workdir may be in a bucket


def fetch(config: Any, workdir: str | None) -> None:
    """Fetch what the KEYS of a config name by URLs, and put the paths of the copies in their place.

    Raises: UserError: something cannot be fetched, or lies in the workdir, if that is a URL.
    """
    for key in KEYS:
        section, _, last = key.rpartition(".")
        values = config.get(section) if section else config
        url = values.get(last) if isinstance(values, Mapping) or hasattr(values, "get") else None
        if not is_url(url):
            continue
        if is_url(workdir) and f"{url}/".startswith(f"{str(workdir).rstrip('/')}/"):
            raise UserError(f"{key}={url} lies in --workdir={workdir}, which the run writes: use another --workdir")
        values[last] = copies.local(url)


def fetch_models(flags: Any) -> None:
    """Do the same for the flags of a command without a config; flags: absl's FLAGS, parsed. Raises: UserError as `fetch`."""
    for name in MODELS:
        if name in flags and flags[name].value:
            flags[name].value = copies.local(flags[name].value)


def workdir_of(path: str, config: Any, verb: str, end: Callable[[str], None]) -> Path:
    """Return the folder of a workdir: the path itself, or the mirror of a URL, which the verb opens when it starts.

    end: called with a line if another job has taken the workdir over.
    Raises: UserError if this verb cannot write into a bucket.
    """
    if not is_url(path):
        return Path(path)
    if verb not in WRITERS:
        raise UserError(f"--workdir={path}: only {', '.join(WRITERS)} write into a bucket; name a local folder")
    keep = {name: config[name] for name in ("keep_last", "keep_every") if name in config}
    if config.get("keep_hours") or config.get("keep_best"):
        keep["keep_every"] = 1  # only the run knows which it keeps, so the mirror removes nothing that it did not fetch
    return mirror.plan(path, end, **keep)
