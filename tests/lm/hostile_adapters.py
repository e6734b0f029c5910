"""Adapters in PEFT's form that a stranger made to do harm: each is a tiny one with one thing wrong."""

import json
from pathlib import Path

import numpy as np

from tests.lm.attacks import DEEP, ESCAPES, Attack, edited, link, pipe, sparse, text
from tests.lm.convert import handmade


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
