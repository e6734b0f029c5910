"""Fetch what a run reads from a bucket: a model, a tokenizer, a dataset. Only objects that have changed are fetched again."""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import filelock

from lm.bucket.places import copy_of, urls_in
from lm.bucket.steps import newest_whole, place_of
from lm.bucket.store import Refused, Store, is_url
from lm.errors import UserError
from lm.files import saving

MODELS = ("checkpoint", "from")  # flags of a command without a config that name a model
# Of a run's folder, what no reader of its model needs; and weights in formats that are not read.
_UNREAD = re.compile(r"(metrics|ids|samples)\.jsonl|.*\.(html|sqlite|bin|pt|pth|h5|msgpack|onnx|ot)|report\.json")
_PART = re.compile(r"-\d{5}(?=-of-\d{5}\.gguf$)")


def local(path: str | os.PathLike) -> str | os.PathLike:
    """Return the path of a copy of what a URL names, which is fetched or brought up to date; other paths as they are."""
    return str(_fetched(str(path).rstrip("/"), False)) if is_url(path) else path


def dataset(url: str) -> Path:
    """Return the same for a folder of which every object is needed."""
    return _fetched(url.rstrip("/"), True)


def fetch(config: Any, workdir: str | None) -> None:
    """Fetch what a config names by URLs, and put the paths of the copies in their place.

    Raises: UserError: something cannot be fetched, or lies in the workdir, if that is a URL.
    """
    for key, values, last in urls_in(config):
        url = values[last]
        if is_url(workdir) and f"{url}/".startswith(f"{str(workdir).rstrip('/')}/"):
            raise UserError(f"{key}={url} lies in --workdir={workdir}, which the run writes: use another --workdir")
        values[last] = local(url)


def fetch_models(flags: Any) -> None:
    """Do the same for the flags of a command without a config; flags: absl's FLAGS, parsed. Raises: UserError as `fetch`."""
    for name in MODELS:
        if name in flags and flags[name].value:
            flags[name].value = local(flags[name].value)


@functools.cache
def _fetched(url: str, everything: bool) -> Path:
    store = Store(url)
    listing = store.list()
    if "" in listing:  # an object, and the other parts of a model in several files
        above, _, name = url.rpartition("/")
        store = Store(above)
        listing = store.list() if _PART.search(name) else {name: listing[""]}
        places = {part: copy_of(f"{above}/{part}") for part in listing if _PART.sub("", part) == _PART.sub("", name)}
    else:
        newest = {} if everything else newest_whole(store, listing)
        places = {name: copy_of(url) / name for name in listing if everything or _is_read(name, newest)}
    if not places:
        raise Refused(f"{url}: nothing is there")
    copy = copy_of(url)
    record = copy.with_name(f"{copy.name}@objects")  # {name: its entry when it was fetched}
    copy.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(copy.with_name(f"{copy.name}@lock")):
        try:
            known = json.loads(record.read_text())
        except (OSError, ValueError):
            known = {}
        wants = [name for name in places if known.get(name) != list(listing[name]) or not places[name].is_file()]
        if wants:
            size = sum(listing[name].size for name in wants)
            print(f"{url}: fetching {len(wants)} files, {size / 1e6:,.1f} MB", flush=True)
        store.fetch({name: places[name] for name in wants})
        for name in known.keys() - listing.keys():  # so that nothing is read that the bucket no longer holds
            (copy / name).unlink(missing_ok=True)
        for place, _, _ in os.walk(copy, topdown=False):  # such as the folders of a checkpoint that is gone
            if place != str(copy) and not os.listdir(place):
                os.rmdir(place)
        known = {name: entry for name, entry in known.items() if name in listing}
        saving.write(record, json.dumps(known | {name: list(listing[name]) for name in places}))
    return copy


def _is_read(name: str, newest: dict[str, str]) -> bool:
    if place := place_of(name):
        return place == newest.get("checkpoints")
    return "/" not in name and not name.startswith(".") and not _UNREAD.fullmatch(name)
