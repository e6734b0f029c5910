"""Tokenizers and adapters that a stranger made to do harm: each is a tiny one with one thing wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.lm.attacks import DEEP, ESCAPES, Attack, edited, link, pipe, sparse, text
from tests.lm.convert import handmade
from tests.lm.hostile_models import key

# The tokenizer's files, in the folder of a model.


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
