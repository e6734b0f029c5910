"""Tokenizers in GGUF files: their settings as the files of a Hugging Face tokenizer.

`tokenizer.ggml.model` is "gpt2", a byte-level BPE (Radford et al. 2019) that cuts a text first by the expressions that
`tokenizer.ggml.pre` names; or "llama", a SentencePiece BPE with a score for each piece (Kudo and Richardson 2018).
"""

import json
from typing import Any, NamedTuple

import numpy as np

from data.text.gguf_names import (
    BEGINS,
    BYTE,
    CONTROL,
    DIGITS,
    ENDS,
    GPT2,
    GPT2_EXPRESSION,
    NAMED,
    NORMAL,
    PRE,
    STEPS,
    UNKNOWN,
    USER_DEFINED,
)
from data.text.sentencepiece_tokenizer import SPACE
from lm.errors import UserError
from lm.files.gguf import GGUFFile

NULL = (1 << 32) - 1  # llama.cpp's id of a token that does not exist
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


class _Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]


def has_tokenizer(file: GGUFFile) -> bool:
    """Return whether a file has a tokenizer of any kind."""
    return _get(file, "model", str, "none") not in ("none", "no_vocab")


def tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """Return the tokenizer of a file as tokenizer.json, tokenizer_config.json and generation_config.json; {} if it has none.

    Raises: UserError for a tokenizer of another kind, or a setting that is missing or of the wrong kind.
    """
    if not has_tokenizer(file):
        return {}
    model = _get(file, "model", str, "none")
    if model not in ("gpt2", "llama"):
        raise UserError(f"tokenizer: {file.path} has tokenizer.ggml.model={model!r}; gpt2 and llama can be read")
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int) if "tokenizer.ggml.token_type" in file.settings else [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"tokenizer: {file.path} has {len(tokens)} tokens and {len(types)} types")
    vocabulary = _Vocabulary(tokens, types)
    ids = {name: _id(file, f"{theirs}_token_id", len(tokens)) for name, theirs in (NAMED | {n: n for n in ENDS[1:]}).items()}
    fast = _byte_level(file, vocabulary) if model == "gpt2" else _sentencepiece(file, vocabulary, ids["unk"])
    adds_bos = _get(file, "add_bos_token", bool, model == "llama" or PRE.get(_get(file, "pre", str, "default")) in BEGINS)
    adds = [ids["bos"] if adds_bos else None, ids["eos"] if _get(file, "add_eos_token", bool, False) else None]
    fast["post_processor"] = _template_processing(tokens, *adds)
    named = {f"{name}_token": tokens[ids[name]] for name in NAMED if ids[name] is not None}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    if template := _get(file, "tokenizer.chat_template", str, ""):
        config["chat_template"] = template
    stops = list(dict.fromkeys(ids[name] for name in ENDS if ids[name] is not None))
    generation = {"bos_token_id": ids["bos"], "eos_token_id": stops or None, "pad_token_id": ids["pad"]}
    contents = {"tokenizer.json": fast, "tokenizer_config.json": config, "generation_config.json": generation}
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in contents.items()}


def _get(file: GGUFFile, name: str, kind: type, default: Any) -> Any:
    name = name if "." in name else f"tokenizer.ggml.{name}"
    value = file.settings.get(name, default)
    if not isinstance(value, kind):
        raise UserError(f"tokenizer: {file.path}: {name} must be of type {kind.__name__}")
    return value


def _list(file: GGUFFile, name: str, kind: type) -> list:
    value = file.settings.get(f"tokenizer.ggml.{name}")
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
        raise UserError(f"tokenizer: {file.path} has no list tokenizer.ggml.{name} of {kind.__name__}")
    return value


def _id(file: GGUFFile, name: str, size: int) -> int | None:
    value = _get(file, name, int, NULL)
    if value == NULL:
        return None
    if not 0 <= value < size:
        raise UserError(f"tokenizer: {file.path} has tokenizer.ggml.{name}={value!r}; its ids are 0…{size - 1}")
    return value


def _byte_level(file: GGUFFile, vocabulary: _Vocabulary) -> dict:
    pre = _get(file, "pre", str, "default")
    if pre not in PRE:
        raise UserError(f"tokenizer: {file.path} has tokenizer.ggml.pre={pre!r}, which is none of {', '.join(PRE)}")
    merges = _list(file, "merges", str)
    pairs = [merge.split(" ") for merge in merges]
    known = set(vocabulary.tokens)
    if bad := next(
        (m for m, pair in zip(merges, pairs) if len(pair) != 2 or not known.issuperset((*pair, "".join(pair)))), None
    ):
        raise UserError(f"tokenizer: {file.path} has the merge {bad!r}, which joins no two tokens to a token")
    return {
        **_frame(vocabulary),
        "normalizer": {"type": "NFC"} if PRE[pre] == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(_step, STEPS[PRE[pre]]), BYTE_LEVEL]},
        "decoder": BYTE_LEVEL,
        "model": _bpe(vocabulary, pairs, ignore_merges=PRE[pre] in BEGINS),
    }


def _step(step: str) -> dict:
    if step == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    expression = GPT2_EXPRESSION if step == GPT2 else step
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _sentencepiece(file: GGUFFile, vocabulary: _Vocabulary, unk: int | None) -> dict:
    tokens, types = vocabulary
    scores = _list(file, "scores", float)
    if len(scores) != len(tokens):
        raise UserError(f"tokenizer: {file.path} has {len(tokens)} tokens and {len(scores)} scores")
    known = {token for token, kind in zip(tokens, types) if kind in (NORMAL, USER_DEFINED)}
    # SentencePiece joins the neighbours whose piece has the best score; any pair of pieces may form it.
    order = sorted((i for i, kind in enumerate(types) if kind == NORMAL and len(tokens[i]) > 1), key=lambda i: -scores[i])
    pairs = [
        (piece[:k], piece[k:])
        for piece in (tokens[i] for i in order)
        for k in range(1, len(piece))
        if piece[:k] in known and piece[k:] in known
    ]
    prefix = _get(file, "add_space_prefix", bool, True)
    to_pieces = [{"type": "Prepend", "prepend": SPACE}] * prefix
    to_pieces.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    to_text = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
    ]
    more = {"byte_fallback": BYTE in types, "fuse_unk": True, "unk_token": None if unk is None else tokens[unk]}
    return {
        **_frame(vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": to_pieces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": to_text},
        "model": _bpe(vocabulary, pairs, **more),
    }


def _frame(vocabulary: _Vocabulary) -> dict:
    added = [
        {"id": i, "content": token, "special": kind != USER_DEFINED}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, (token, kind) in enumerate(zip(*vocabulary))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}


def _bpe(vocabulary: _Vocabulary, pairs: list, **more) -> dict:
    vocab: dict[str, int] = {}
    for i, token in enumerate(vocabulary.tokens):
        vocab.setdefault(token, i)
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **defaults, "fuse_unk": False, "byte_fallback": False, **more, "vocab": vocab, "merges": pairs}


def _template_processing(tokens: list[str], bos: int | None, eos: int | None) -> dict:
    def symbol(i: int | None, kind: int) -> list[dict]:
        return [] if i is None else [{"SpecialToken": {"id": tokens[i], "type_id": kind}}]

    def sequence(name: str, kind: int) -> list[dict]:
        return [*symbol(bos, kind), {"Sequence": {"id": name, "type_id": kind}}, *symbol(eos, kind)]

    special = {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in (bos, eos) if i is not None}
    single, pair = sequence("A", 0), sequence("A", 0) + sequence("B", 1)
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
