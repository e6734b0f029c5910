"""Models that a stranger made to do harm, by format: each is a tiny one with one thing wrong."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import tokenizers

from tests.lm.attacks import DEEP, ESCAPES, HUGE, Attack, edited, link, pipe, sparse, text, void
from tests.lm.convert import handmade

INDEX = "model.safetensors.index.json"


def model(folder: Path, shards: int = 1) -> Path:
    """A Llama that can be read, with a tokenizer."""
    handmade.written(folder, handmade.llama(), shards=shards)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    return folder


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
