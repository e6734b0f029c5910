"""Tokenizers that a stranger made to do harm, in the folder of a model: each is a tiny one with one thing wrong."""

from collections.abc import Callable

from tests.lm.attacks import DEEP, Attack, edited, link, pipe, sparse, text
from tests.lm.hostile_models import key


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
