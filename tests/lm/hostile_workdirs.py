"""Workdirs that a stranger made to do harm: attacks on the folder of a checkpoint. Who makes one also makes its checksums."""

import json
from collections.abc import Callable

from tests.lm.attacks import DEEP, Attack, edited, link, pipe, sparse, text


def meta(change: Callable[[dict], object]) -> Attack:
    return edited("meta/metadata", change)


def model_key(name: str, value) -> Attack:
    return meta(lambda found: found["config"]["model"].update({name: value}))


def sums(change: Callable[[dict], object] | object) -> Attack:
    """Change meta/checksums.json, or replace it."""
    if callable(change):
        return edited("meta/checksums.json", lambda value: change(value["xxh3_128"]))
    return text("meta/checksums.json", json.dumps(change))


BASE = {"path": "/nowhere", "relative": "../nowhere", "step": None, "fingerprint": "a" * 32}
CHECKPOINT: dict[str, Attack] = {
    "sums of a file above": sums(lambda found: found.update({"../../../../etc/passwd": [1, "a"]})),
    "sums of an absolute file": sums(lambda found: found.update({"/etc/passwd": [1, "a"]})),
    "sums of a device": sums(lambda found: found.update({"/dev/zero": [0, "a"]})),
    "sums of numbers": sums(lambda found: found.update(metadata=7)),
    "sums of three": sums(lambda found: found.update(metadata=[1, "a", 2])),
    "sums of text": sums(lambda found: found.update(metadata=["1", "a"])),
    "sums that are a list": sums([]),
    "sums in a list": sums({"xxh3_128": []}),
    "sums of nothing": sums({}),
    "deep sums": text("meta/checksums.json", DEEP),
    "large sums": sparse("meta/checksums.json", 1 << 30),
    "sums that are a pipe": pipe("meta/checksums.json"),
    "meta is no JSON": text("meta/metadata", "{"),
    "meta is a list": text("meta/metadata", "[]"),
    "meta is null": text("meta/metadata", "null"),
    "meta is deep": text("meta/metadata", DEEP),
    "meta is large": sparse("meta/metadata", 1 << 30),
    "meta is a pipe": pipe("meta/metadata"),
    "meta leads outside": link("meta/metadata", "SECRET"),
    "no config": meta(lambda found: found.pop("config")),
    "config is a list": meta(lambda found: found.update(config=[])),
    "no model": meta(lambda found: found["config"].pop("model")),
    "model is a text": meta(lambda found: found["config"].update(model="llama")),
    "unknown key": model_key("magic", 1),
    "10^12 tokens": model_key("vocab_size", 10**12),
    "tokens of text": model_key("vocab_size", "a"),
    "tokens of NaN": model_key("vocab_size", float("nan")),
    "another vocabulary": model_key("vocab_size", 49),
    "10^9 layers": model_key("num_layers", 10**9),
    "10,000 layers": model_key("num_layers", 9_999),
    "10^9 modules": model_key("mtp_depth", 10**9),
    "a text as norm_eps": model_key("norm_eps", "a"),
    "rope is a list": model_key("rope", [1]),
    "rope of NaN": model_key("rope", {"theta": float("nan")}),
    "moe is a text": model_key("moe", "a"),
    "targets that do not end": model_key("adapter", {"rank": 1, "targets": "(\\w+)+!"}),
    "dtype is a list": meta(lambda found: found["config"].update(dtype=[1])),
    "base is a text": meta(lambda found: found.update(base="a")),
    "base is a list": meta(lambda found: found.update(base=[1])),
    "base without a path": meta(lambda found: found.update(base={**BASE, "path": None})),
    "base of numbers": meta(lambda found: found.update(base={**BASE, "path": 7})),
    "base of another step": meta(lambda found: found.update(base={**BASE, "step": "a"})),
    "base is not there": meta(lambda found: found.update(base=BASE)),
    **{f"{name} of noise": text(f"state/{name}", bytes(range(256)) * 3) for name in ("_METADATA", "manifest.ocdbt")},
    "array metadata of noise": text("state/array_metadatas/process_0", bytes(range(256)) * 3),
    "_METADATA is a list": text("state/_METADATA", "[]"),
    "_METADATA is deep": text("state/_METADATA", DEEP),
    "_METADATA is null": text("state/_METADATA", "null"),
    "_METADATA of nothing": text("state/_METADATA", "{}"),
    "no manifest": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
}
