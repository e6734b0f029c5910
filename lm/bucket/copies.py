"""Fetch what a run reads from a bucket: a model, a tokenizer, a dataset. Only objects that have changed are fetched again."""

import functools
import json
import os
import re
from pathlib import Path

import filelock

from lm import saving
from lm.bucket.places import copy_of
from lm.bucket.steps import newest_whole, place_of
from lm.bucket.store import Refused, Store, is_url

# Of a run's folder, what no reader of its model needs; and weights in formats that are not read.
_UNREAD = re.compile(r"(metrics|ids|samples)\.jsonl|.*\.(html|sqlite|bin|pt|pth|h5|msgpack|onnx|ot)|report\.json")
_PART = re.compile(r"(.+-)\d{5}(-of-\d{5}\.gguf)")


def local(path: str | os.PathLike) -> str | os.PathLike:
    """Return the path of a copy of what a URL names, which is fetched or brought up to date; other paths as they are."""
    return str(_fetched(str(path).rstrip("/"), False)) if is_url(path) else path


def dataset(url: str) -> Path:
    """Return the same for a folder of which every object is needed."""
    return _fetched(url.rstrip("/"), True)


@functools.cache
def _fetched(url: str, everything: bool) -> Path:
    store, folder = Store(url), copy_of(url)
    listing = store.list()
    if "" in listing:  # an object, and the other parts of a model in several files
        above, _, name = url.rpartition("/")
        part = _PART.fullmatch(name)
        store, listing = Store(above), Store(above).list() if part else {name: listing[""]}
        listing = {
            other: entry
            for other, entry in listing.items()
            if other == name or (part and (match := _PART.fullmatch(other)) and match.groups() == part.groups())
        }
        wanted, path = set(listing), folder / name
    else:
        newest = {} if everything else newest_whole(store, listing)
        wanted, path = {name for name in listing if everything or _is_read(name, newest)}, folder
    if not wanted:
        raise Refused(f"{url}: nothing is there")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / ".objects.json"
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            known = json.loads(record.read_text())
        except (OSError, ValueError):
            known = {}
        wants = [name for name in wanted if known.get(name) != list(listing[name]) or not (folder / name).is_file()]
        if wants:
            size = sum(listing[name].size for name in wants)
            print(f"{url}: fetching {len(wants)} files, {size / 1e6:,.1f} MB", flush=True)
        store.fetch(wants, folder)
        for name in known.keys() - listing.keys():  # so that nothing is read that the bucket no longer holds
            (folder / name).unlink(missing_ok=True)
        _remove_empty(folder)
        known = {name: list(listing[name]) if name in wanted else known[name] for name in listing if name in {*wanted, *known}}
        saving.write(record, json.dumps(known))
    return path


def _is_read(name: str, newest: dict[str, str]) -> bool:
    if place := place_of(name):
        return place == newest.get("checkpoints")
    return "/" not in name and not name.startswith(".") and not _UNREAD.fullmatch(name)


def _remove_empty(folder: Path) -> None:
    """Remove empty folders, such as those of a checkpoint that is gone."""
    for place, _, _ in os.walk(folder, topdown=False):
        if place != str(folder) and not os.listdir(place):
            os.rmdir(place)
