"""Folders and files that a stranger made to do harm, by format: each is a tiny model with one thing wrong."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers

from tests.lm.convert import handmade

HUGE, DEEP = 1 << 60, "[" * 100_000
ESCAPES = "\x1b[2J\r\u202e\u2066evil\x07"
INDEX = "model.safetensors.index.json"
Attack = Callable[[Path], None]


def model(folder: Path, shards: int = 1) -> Path:
    """A Llama that can be read, with a tokenizer."""
    handmade.written(folder, handmade.llama(), shards=shards)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    return folder


def edited(name: str, change: Callable[[dict], object]) -> Attack:
    """Change the JSON in a file, in place."""

    def attack(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return attack


def text(name: str, content: str | bytes) -> Attack:
    return lambda folder: void((folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()))


def void(_: object) -> None:
    return None


def pipe(name: str) -> Attack:
    def attack(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return attack


def link(name: str, to: str) -> Attack:
    """Replace a file by a link. to: a path; SECRET is a readable file beside the folder with the same content."""

    def attack(folder: Path) -> None:
        target = folder.parent / "secret" if to == "SECRET" else Path(to)
        if to == "SECRET":
            (folder / name).rename(target)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return attack


def sparse(name: str, size: int, begin: bytes = b"") -> Attack:
    """A file of a large size that takes no space on the disk."""

    def attack(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(begin)
            file.truncate(size)

    return attack


def at_every_file(attack: Callable[[str], Attack], names: tuple[str, ...]) -> dict[str, Attack]:
    return {name: attack(name) for name in names}


# safetensors: attacks on model.safetensors.


def header(change: Callable[[dict], object] | str | bytes, data: bytes | None = None, length: int | None = None) -> Attack:
    """Replace the header, or change it."""

    def attack(folder: Path) -> None:
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        found, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :] if data is None else data
        if callable(change):
            change(found)
            begin = json.dumps(found).encode()
        else:
            begin = change if isinstance(change, bytes) else change.encode()
        file.write_bytes(struct.pack("<Q", len(begin) if length is None else length) + begin + rest)

    return attack


def entry(name: str = handmade.HEAD, **keys) -> Attack:
    return header(lambda found: found[name].update(keys))


SAFETENSORS: dict[str, Attack] = {
    "empty": text("model.safetensors", b""),
    "seven bytes": text("model.safetensors", bytes(7)),
    "no header": text("model.safetensors", bytes(8)),
    "header of 2^60 bytes": header("{}", length=HUGE),
    "header of 2^64 - 1 bytes": header("{}", length=(1 << 64) - 1),
    "header beyond the end": header("{}", data=b"", length=3),
    "large header": sparse("model.safetensors", 1 << 31, struct.pack("<Q", 1 << 30)),
    "no JSON": header("{'a': 1}"),
    "no UTF-8": header(b'{"\xff": 1}'),
    "a list": header("[]"),
    "a number": header("7"),
    "null": header("null"),
    "deep": header(DEEP),
    "deep objects": header('{"a":' * 100_000),
    "many values": header("[" + "0," * 11_000_000 + "0]"),
    "a tensor twice": header(
        '{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    ),
    "a tensor that is a number": header(lambda found: found.update(x=1)),
    "a tensor that is a text": header(lambda found: found.update(x="F32")),
    "no dtype": header(lambda found: found[handmade.HEAD].pop("dtype")),
    "no shape": header(lambda found: found[handmade.HEAD].pop("shape")),
    "no offsets": header(lambda found: found[handmade.HEAD].pop("data_offsets")),
    "unknown dtype": entry(dtype="F4"),
    "dtype of a list": entry(dtype=["F32"]),
    "dtype with escapes": entry(dtype=ESCAPES),
    "one offset": entry(data_offsets=[0]),
    "three offsets": entry(data_offsets=[0, 1, 2]),
    "offsets of text": entry(data_offsets=["0", "8"]),
    "offsets of halves": entry(data_offsets=[0.5, 8.5]),
    "offsets of NaN": entry(data_offsets=[float("nan"), 8]),
    "offsets the wrong way": entry(data_offsets=[3072, 0]),
    "negative offset": entry(data_offsets=[-3072, 0]),
    "offset beyond the end": entry(data_offsets=[1 << 40, (1 << 40) + 3072]),
    "offset beyond 2^63": entry(data_offsets=[HUGE * 16, HUGE * 16 + 3072]),
    "offset of a thousand digits": entry(data_offsets=[10**1000, 10**1000 + 3072]),
    "overlap": entry(data_offsets=[2, 3074]),
    "shape of text": entry(shape="48"),
    "shape of a number": entry(shape=48),
    "shape of halves": entry(shape=[48.0, 32.0]),
    "shape of truths": entry(shape=[True, True]),
    "shape of lists": entry(shape=[[48], [32]]),
    "negative shape": entry(shape=[-48, -32]),
    "shape beyond 2^63": entry(shape=[HUGE, HUGE], data_offsets=[0, HUGE * HUGE * 2]),
    "shape of nothing": entry(shape=[HUGE, 0], data_offsets=[0, 0]),
    "a thousand axes": entry(shape=[1] * 1000),
    "another shape": entry(shape=[32, 48]),
    "complex numbers": entry(dtype="C64", data_offsets=[0, 12288]),
    "integers": entry(dtype="I16"),
    "name with escapes": header(lambda found: found.update({ESCAPES: found.pop(handmade.HEAD)})),
    "name without end": header(lambda found: found.update({"a" * 1_000_000: found.pop(handmade.HEAD)})),
    "a pipe": pipe("model.safetensors"),
    "a link to a device": link("model.safetensors", "/dev/zero"),
    "a link outside": link("model.safetensors", "SECRET"),
    "a link to itself": link("model.safetensors", "model.safetensors"),
}

# The index of two shards.


def file_of(name) -> Attack:
    return edited(INDEX, lambda index: index["weight_map"].update({handmade.HEAD: name}))


def _second_holds_it_too(folder: Path) -> None:
    shard = (folder / "model-00002-of-00002.safetensors").read_bytes()
    (folder / "third.safetensors").write_bytes(shard)
    edited(INDEX, lambda index: index["weight_map"].update(more="third.safetensors"))(folder)


SHARDS: dict[str, Attack] = {
    "no JSON": text(INDEX, "{"),
    "a list": text(INDEX, "[]"),
    "deep": text(INDEX, DEEP),
    "large": sparse(INDEX, 1 << 30),
    "many values": text(INDEX, "[" + "0," * 11_000_000 + "0]"),
    "no map": text(INDEX, "{}"),
    "a map that is a list": text(INDEX, '{"weight_map": ["a"]}'),
    "an empty map": text(INDEX, '{"weight_map": {}}'),
    "a file above": file_of("../secret.safetensors"),
    "a file above, from below": file_of("a/../../secret.safetensors"),
    "an absolute file": file_of("/etc/passwd"),
    "a device": file_of("/dev/zero"),
    "a number": file_of(7),
    "null": file_of(None),
    "a list of files": file_of(["model-00001-of-00002.safetensors"]),
    "no name": file_of(""),
    "a point": file_of("."),
    "a zero byte": file_of("a\0b"),
    "a long name": file_of("a" * 100_000),
    "a name with escapes": file_of(ESCAPES),
    "a folder": lambda folder: ((folder / "sub").mkdir(), file_of("sub")(folder)),
    "a missing file": file_of("model-00003-of-00002.safetensors"),
    "another file": file_of("config.json"),
    "a tensor in two files": _second_holds_it_too,
    "a pipe": pipe("model-00002-of-00002.safetensors"),
    "a link outside": link("model-00002-of-00002.safetensors", "SECRET"),
    "an index that is a pipe": pipe(INDEX),
    "an index that leads outside": link(INDEX, "SECRET"),
}

# config.json.


def key(name: str, value) -> Attack:
    return edited("config.json", lambda config: config.update({name: value}))


WRONG = {
    "huge": 10**12,
    "larger": 10**30,
    "negative": -1,
    "text": "a",
    "NaN": float("nan"),
    "a list": [1],
    "an object": {},
    "half": 1.5,
}
CONFIG: dict[str, Attack] = {
    **{f"{name} {kind}": key(name, value) for name in ("vocab_size", "num_hidden_layers") for kind, value in WRONG.items()},
    **{
        f"{name} {kind}": key(name, WRONG[kind])
        for name in (
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
        for kind in ("huge", "negative", "text")
    },
    "head_dim huge": key("head_dim", 10**12),
    "no layers": key("num_hidden_layers", 0),
    "10^9 layers": key("num_hidden_layers", 10**9),
    "10,000 layers": key("num_hidden_layers", 10_000),
    "no heads": key("num_attention_heads", 0),
    "infinite rms_norm_eps": key("rms_norm_eps", float("inf")),
    "text as rms_norm_eps": key("rms_norm_eps", "a"),
    "no rms_norm_eps": key("rms_norm_eps", 0),
    "negative rope_theta": key("rope_theta", -1),
    "text as rope_theta": key("rope_theta", "a"),
    "huge rope_theta": key("rope_theta", 10**400),
    "rope_scaling is a text": key("rope_scaling", "linear"),
    "rope_scaling is a list": key("rope_scaling", [1]),
    "rope_scaling without factor": key("rope_scaling", {"rope_type": "linear"}),
    "rope_type is a list": key("rope_scaling", {"rope_type": ["linear"]}),
    "rope_type with escapes": key("rope_scaling", {"rope_type": ESCAPES}),
    "rope factor of NaN": key("rope_scaling", {"rope_type": "linear", "factor": float("nan")}),
    "model_type is a list": key("model_type", ["llama"]),
    "model_type is null": key("model_type", None),
    "model_type with escapes": key("model_type", ESCAPES),
    "long model_type": key("model_type", "a" * 1_000_000),
    "architectures is a number": key("architectures", 7),
    "architectures of numbers": key("architectures", [7]),
    "id2label is a number": lambda folder: (
        key("id2label", 7)(folder),
        key("architectures", ["XForSequenceClassification"])(folder),
    ),
    "hidden_act is a list": key("hidden_act", ["silu"]),
    "mistral of 10^9 layers": lambda folder: (key("model_type", "mistral")(folder), key("num_hidden_layers", 10**9)(folder)),
    "qwen2 with layer_types of numbers": lambda folder: (
        key("model_type", "qwen2")(folder),
        key("layer_types", [1, 2, 3])(folder),
    ),
    "10^9 experts": lambda folder: (key("model_type", "mixtral")(folder), key("num_local_experts", 10**9)(folder)),
    "10,000 experts": lambda folder: (key("model_type", "mixtral")(folder), key("num_local_experts", 10_000)(folder)),
    "text as experts": lambda folder: (key("model_type", "mixtral")(folder), key("num_experts_per_tok", "a")(folder)),
    "deepseek with text": lambda folder: (key("model_type", "deepseek_v3")(folder), key("moe_layer_freq", "a")(folder)),
    "deepseek with no frequency": lambda folder: (key("model_type", "deepseek_v3")(folder), key("moe_layer_freq", 0)(folder)),
    "gpt2 of 10^9 layers": lambda folder: (key("model_type", "gpt2")(folder), key("n_layer", 10**9)(folder)),
    "empty": text("config.json", b""),
    "no UTF-8": text("config.json", b'{"\xff": 1}'),
    "a list of models": text("config.json", "[]"),
    "deep": text("config.json", DEEP),
    "deep objects": text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "a key twice": text("config.json", '{"model_type": "llama", "model_type": "gpt2"}'),
    "long number": text("config.json", '{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}"),
    "1 GB": sparse("config.json", 1 << 30),
    "many values": text("config.json", '{"a": [' + "0," * 3_000_000 + "0]}"),
    "a pipe": pipe("config.json"),
    "a folder": lambda folder: ((folder / "config.json").unlink(), void((folder / "config.json").mkdir())),
    "a device": link("config.json", "/dev/zero"),
    "a link outside": link("config.json", "SECRET"),
}

# The tokenizer's files.


def fast(change: Callable[[dict], object]) -> Attack:
    return edited("tokenizer.json", change)


def setting(name: str, value) -> Attack:
    return edited("tokenizer_config.json", lambda config: config.update({name: value}))


def generation(name: str, value) -> Attack:
    return edited("generation_config.json", lambda config: config.update({name: value}))


SETTINGS = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
TOKENIZER: dict[str, Attack] = {
    "empty": text("tokenizer.json", ""),
    "a list": text("tokenizer.json", "[]"),
    "no UTF-8": text("tokenizer.json", b"\xff\xfe"),
    "deep": text("tokenizer.json", DEEP),
    "10^7 merges": text(
        "tokenizer.json", '{"model":{"type":"BPE","vocab":{"a":0},"merges":[' + '["a","a"],' * 6_000_000 + '["a","a"]]}}'
    ),
    "1 GB": sparse("tokenizer.json", 1 << 30),
    "a pipe": pipe("tokenizer.json"),
    "a link outside": link("tokenizer.json", "SECRET"),
    "no model": fast(lambda value: value.pop("model")),
    "unknown model": fast(lambda value: value["model"].update(type="Magic")),
    "an id of 2^32 - 1": fast(lambda value: value["model"]["vocab"].update(c=(1 << 32) - 1)),
    "an id of 2^40": fast(lambda value: value["model"]["vocab"].update(c=1 << 40)),
    "a negative id": fast(lambda value: value["model"]["vocab"].update(c=-1)),
    "an id of text": fast(lambda value: value["model"]["vocab"].update(c="a")),
    "an added id of 2^40": fast(lambda value: value["added_tokens"][0].update(id=1 << 40)),
    "no vocabulary": fast(lambda value: value["model"].update(vocab={}, merges=[]) or value.update(added_tokens=[])),
    "merges of unknown tokens": fast(lambda value: value["model"].update(merges=[["x", "y"]])),
    "merges of numbers": fast(lambda value: value["model"].update(merges=[[0, 1]])),
    "merges of one": fast(lambda value: value["model"].update(merges=[["a"]])),
    "added tokens of text": fast(lambda value: value.update(added_tokens=["a"])),
    "unknown decoder": fast(lambda value: value.update(decoder={"type": "Magic"})),
    "decoder of a list": fast(lambda value: value.update(decoder=[1])),
    "deep decoder": lambda folder: fast(lambda value: value.update(decoder=_nested(200)))(folder),
    "broken pattern": fast(lambda value: value.update(pre_tokenizer=_split("(((("))),
    "bos_token is a number": setting("bos_token", 7),
    "bos_token is a list": setting("bos_token", ["<s>"]),
    "bos_token of a list": setting("bos_token", {"content": ["<s>"]}),
    "eos_token is deep": text("tokenizer_config.json", '{"eos_token": ' + DEEP),
    "chat_template is a number": setting("chat_template", 7),
    "chat_template is an object": setting("chat_template", {"default": "a"}),
    "chat_template of numbers": setting("chat_template", [{"name": "default", "template": 7}]),
    "chat_template.jinja is no text": text("chat_template.jinja", b"\xff"),
    "chat_template.jinja leads outside": lambda folder: (
        (folder / "chat_template.jinja").write_text("a"),
        link("chat_template.jinja", "SECRET")(folder),
    ),
    "chat_template.jinja is a pipe": pipe("chat_template.jinja"),
    "eos_token_id is a text": generation("eos_token_id", "a"),
    "eos_token_id is negative": generation("eos_token_id", -1),
    "eos_token_id is huge": generation("eos_token_id", 10**30),
    "eos_token_id is a half": generation("eos_token_id", 0.5),
    "eos_token_id of texts": generation("eos_token_id", ["a"]),
    "pad_token_id is an object": generation("pad_token_id", {}),
    "bos_token_id in config.json": key("bos_token_id", "a"),
    **{f"{name} is a pipe": pipe(name) for name in SETTINGS},
    **{f"{name} is no JSON": text(name, "{") for name in SETTINGS},
    **{f"{name} is large": sparse(name, 1 << 30) for name in SETTINGS},
    "a SentencePiece model of noise": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        text("tokenizer.model", bytes(range(256)) * 9)(folder),
    ),
    "a SentencePiece model of 1 GB": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        sparse("tokenizer.model", 1 << 30)(folder),
    ),
    "a SentencePiece model that is a pipe": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        pipe("tokenizer.model")(folder),
    ),
}


def _nested(depth: int) -> dict:
    found = {"type": "Fuse"}
    for _ in range(depth):
        found = {"type": "Sequence", "decoders": [found]}
    return found


def _split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# A PEFT adapter of the model.


def adapter(folder: Path) -> Path:
    """An adapter of the first query matrix that can be read."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": np.ones((2, 32), np.float32), f"{module}.lora_B.weight": np.ones((32, 2), np.float32)}
    handmade.written(folder / "made", tensors)
    (folder / "made" / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "made" / "config.json").unlink()
    (folder / "made").rmdir()
    return folder


def peft(name: str, value) -> Attack:
    return edited("adapter_config.json", lambda config: config.update({name: value}))


def lora(**shapes) -> Attack:
    """Other shapes of A and B; the same number of values as they come to."""

    def attack(folder: Path) -> None:
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        usual = {"A": (2, 32), "B": (32, 2)} | shapes
        handmade.written(folder / "made", {f"{module}.lora_{k}.weight": np.ones(v, np.float32) for k, v in usual.items()})
        (folder / "made" / "model.safetensors").rename(folder / "adapter_model.safetensors")

    return attack


ADAPTER: dict[str, Attack] = {
    "no JSON": text("adapter_config.json", "{"),
    "a list": text("adapter_config.json", "[]"),
    "deep": text("adapter_config.json", DEEP),
    "large": sparse("adapter_config.json", 1 << 30),
    "a pipe": pipe("adapter_config.json"),
    "a link outside": link("adapter_config.json", "SECRET"),
    "peft_type is a list": peft("peft_type", ["LORA"]),
    "peft_type with escapes": peft("peft_type", ESCAPES),
    "no lora_alpha": edited("adapter_config.json", lambda config: config.pop("lora_alpha")),
    "lora_alpha is a text": peft("lora_alpha", "a"),
    "lora_alpha is NaN": peft("lora_alpha", float("nan")),
    "lora_alpha is huge": peft("lora_alpha", 10**400),
    "alpha_pattern is a list": peft("alpha_pattern", ["a"]),
    "alpha_pattern of text": peft("alpha_pattern", {"q_proj": "a"}),
    "alpha_pattern that does not end": peft("alpha_pattern", {"(\\w+\\.?)+!": 1}),
    "alpha_pattern that is broken": peft("alpha_pattern", {"(((": 1}),
    "modules_to_save is a number": peft("modules_to_save", 7),
    "modules_to_save of lists": peft("modules_to_save", [["score"]]),
    "an unknown key with escapes": peft(ESCAPES, ESCAPES),
    "weights are a pipe": pipe("adapter_model.safetensors"),
    "weights lead outside": link("adapter_model.safetensors", "SECRET"),
    "weights are noise": text("adapter_model.safetensors", bytes(range(256))),
    "no axes": lora(A=(), B=()),
    "one axis": lora(A=(64,), B=(64,)),
    "three axes": lora(A=(2, 4, 8), B=(32, 2, 1)),
    "no rank": lora(A=(0, 32), B=(32, 0)),
    "two ranks": lora(A=(2, 32), B=(32, 3)),
    "another model": lora(A=(2, 31)),
}

# A workdir: attacks on the folder of its one checkpoint. Whoever makes one also makes its checksums.


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
