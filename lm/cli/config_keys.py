"""The keys of a config: list them, read one, and name the nearest one for an error."""

import difflib
from collections.abc import Iterable

import ml_collections

from lm.cli import other_names

MANY = 20  # keys that an error lists at most


def listed(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    """Yield the keys of a config, those of its sections as SECTION.KEY."""
    for key, inner in config.items():
        if isinstance(inner, ml_collections.ConfigDict):
            yield from listed(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


def value(config: ml_collections.ConfigDict, key: str) -> object:
    """Return the value of a key, or a section."""
    for part in key.split("."):
        config = config[part]
    return config


def type_of(config: ml_collections.ConfigDict, key: str) -> str:
    """Return the name of the type that the values of a key have."""
    section, _, last = key.rpartition(".")
    return (value(config, section) if section else config).get_ref(last).get_type().__name__


def nearest(name: str, config: ml_collections.ConfigDict) -> str:
    """Return "; did you mean KEY?" for a key that there is not, or what there is instead."""
    known, last = list(listed(config)), name.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last]
    own = [key for key in same if key.startswith(f"{config.get('method')}.")]  # of the method, such as preference
    if note := other_names.needless(name):
        return f"; {note}"
    near = own[:1] or [other_names.ours(name, {*known, "workdir"})]
    near = [key for key in near if key] or same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        by_end = difflib.get_close_matches(last, [key.rpartition(".")[2] for key in known], n=1, cutoff=0.6)
        near = [key for key in known if by_end and key.rpartition(".")[2] == by_end[0]]
    if near:
        return f"; did you mean {'--' * (near[0] == 'workdir')}{near[0]}?"
    return f"; there are {', '.join(sorted(known))}" if len(known) <= MANY else "; --help lists the keys"
