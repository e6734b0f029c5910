"""What a mistake in a command line means: the nearest key or flag, and the names that other programs have for them."""

import difflib
import functools
import os
import re
from collections.abc import Collection
from pathlib import Path

import ml_collections
from absl import flags

from lm.cli.config_files import listed, type_of, value
from lm.files.untrusted import shown

MANY = 20  # keys that an error lists at most


@functools.cache
def other_names() -> dict[str, dict[str, str]]:
    """Return other_names.yaml: {"names": {ours: theirs}, "needless": {theirs: what to do}}. Only errors need it."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("other_names.yaml").read_text(encoding="utf-8"))


def ours(name: str, known: Collection[str]) -> str | None:
    """Return the name in `known`, or "key=value", that another program calls `name`; None if there is none.

    name: a dotted key; only its last part counts, unless the whole is listed.
    """
    plain = name.lower().replace("-", "_")
    for wanted in dict.fromkeys((plain, plain.rpartition(".")[2])):
        for key, theirs in other_names()["names"].items():
            if key.partition("=")[0] in known and wanted in theirs.split():
                return key
    return None


def needless(name: str) -> str | None:
    """Return what there is instead of a setting of another program that has no key here."""
    return other_names()["needless"].get(name.lower().replace("-", "_").rpartition(".")[2])


def nearest(name: str, config: ml_collections.ConfigDict) -> str:
    """Return "; did you mean KEY?" for a key that there is not, or what there is instead."""
    known, last = list(listed(config)), name.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == last]
    own = [key for key in same if key.startswith(f"{config.get('method')}.")]  # of the method, such as preference
    if note := needless(name):
        return f"; {note}"
    near = own[:1] or [ours(name, {*known, "workdir"})]
    near = [key for key in near if key] or same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        by_end = difflib.get_close_matches(last, [key.rpartition(".")[2] for key in known], n=1, cutoff=0.6)
        near = [key for key in known if by_end and key.rpartition(".")[2] == by_end[0]]
    if near:
        return f"; did you mean {'--' * (near[0] == 'workdir')}{near[0]}?"
    return f"; there are {', '.join(sorted(known))}" if len(known) <= MANY else "; --help lists the keys"


def unknown_key(argv: list[str], path: str, config: ml_collections.ConfigDict, error: Exception) -> str:
    """Return the error message for a --config.KEY that is not in the file's config, with the nearest key."""
    known = set(listed(config))
    for arg in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", arg)
        if match and match[1] not in known:
            return f"--config.{match[1]}: no such key in {path}" + nearest(match[1], config)
    return f"--config={path}: {one_line(error)}"


def unknown_flag(name: str, config: ml_collections.ConfigDict | None = None) -> str:
    """Return the error message for a --NAME that there is not; it may be the name of a key."""
    by_module = flags.FLAGS.flags_by_module_dict().items()
    known = [flag.name for module, own in by_module if not module.startswith(("absl", "tensorflow")) for flag in own]
    if note := needless(name):
        return f"--{name}: no such flag; {note}"
    meant = ours(name, known)
    if config is not None:
        hint = nearest(name, config)
        is_key = name in listed(config)
        if meant is None and (is_key or not difflib.get_close_matches(name, known, n=1, cutoff=0.7)):
            return f"--{name}: no such flag" + re.sub(r"did you mean (?!--)", "did you mean --config.", hint)
    near = [meant] if meant else difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"--{name}: no such flag; " + (f"did you mean --{near[0]}?" if near else f"there are --{', --'.join(sorted(known))}")


def missing_value(error: Exception) -> str:
    if match := re.match(r"Missing value for flag (\S+)", str(error)):
        return f"{match[1]} has no value: write {match[1]}=VALUE"
    if (match := re.match(r"flag (--(\w+)=.*): could not convert", str(error))) and match[2] in flags.FLAGS:
        return f"{match[1]}: write a number, such as {flags.FLAGS[match[2]].default}"
    return one_line(error)


def wrong_value(config: ml_collections.ConfigDict, error: Exception) -> str:
    """Return the error message for a value of a wrong type, with the type and default from the config."""
    match = re.match(r"flag (--config\.([^=]+)=(.*?)): ", str(error))
    usual = value(config, match[2]) if match else None
    if isinstance(usual, ml_collections.ConfigDict):
        meant = ours(match[2], set(listed(config)) - set(listed(usual, match[2] + ".")))
        if meant:
            return f"{match[1]}: a section, not a key; did you mean --config.{meant}={match[3]}?"
        keys = list(listed(usual, match[2] + "."))
        if f"{match[2]}.{match[3].partition('=')[0]}" in keys:
            return f"{match[1]}: a section, not a key; did you mean --config.{match[2]}.{match[3]}?"
        if f"{match[2]}.name" in keys and re.fullmatch(r"[\w./:-]+", match[3]):
            return f"{match[1]}: a section, not a key; did you mean --config.{match[2]}.name={match[3]}?"
        more = f" and {len(keys) - MANY} more, which --help lists" if len(keys) > MANY else ""
        return f"{match[1]}: a section, not a key; its keys are {', '.join(keys[:MANY])}{more}"
    if usual is None:
        return one_line(error) + (f"; it must be of type {type_of(config, match[2])}" if match else "")
    if isinstance(usual, int) and re.fullmatch(r"\d+(\.\d*)?([eE]\+?\d)?", match[3]) and float(match[3]).is_integer():
        return f"{match[1]}: must be of type {type(usual).__name__}: write {int(float(match[3]))}"
    return f"{match[1]}: must be of type {type(usual).__name__}, such as {usual}"


def stray(extra: list[str], config: ml_collections.ConfigDict | None = None) -> str:
    """Return the error message for arguments that belong to no flag."""
    first, begin = extra[0], f"unexpected argument {extra[0]!r}"
    name = first.partition("=")[0].lstrip("-").removeprefix("config.")
    if config is not None and "=" in first and name in listed(config):
        return f"{begin}: write --config.{name}={first.partition('=')[2]}"
    if config is not None and all(map(os.path.exists, extra)):
        return (
            f"{begin}: options are written --name=value. If the shell expanded a glob, quote it: "
            "--config.data.input='FOLDER/*.txt'; commas separate several files"
        )
    free = [f for f in ("checkpoint", "prompt", "chats") if f in flags.FLAGS and flags.FLAGS[f].value is None]
    hint = f"; did you mean --{free[0]}={first}?" if config is None and free and "=" not in first else ""
    return f"{begin}: options are written --name=value, with quotes around a value that has spaces{hint}"


def one_line(message: object) -> str:
    return shown(" ".join(str(message).split()))
