"""The settings of a tokenizer for a GGUF file."""

import json
from collections.abc import Mapping
from typing import Any

from data.text.gguf_names import (
    BYTE,
    CONTROL,
    DIGITS,
    ENDS,
    GPT2,
    GPT2_EXPRESSION,
    NORMAL,
    STEPS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from lm.errors import UserError


def tokenizer_settings(tokenizer: HFTokenizer | SentencePieceTokenizer, size: int) -> dict[str, Any]:
    """Return the settings of a tokenizer for a model of `size` ids; those without a token become unused ones.

    Raises: UserError if llama.cpp would cut texts in another way.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = _of_pieces(tokenizer)
    else:
        found = _of_fast(json.loads(tokenizer.json), tokenizer)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    unused = range(len(tokens), size)
    tokens += [f"[PAD{i}]" for i in unused]
    types += [UNUSED] * len(unused)
    if "tokenizer.ggml.scores" in found:
        found["tokenizer.ggml.scores"] += [-1e9] * len(unused)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": getattr(tokenizer, "unk_id", None)}
    ids["padding"] = tokenizer.pad_id if "pad_token" in tokenizer.special_tokens else None
    others = [i for i in tokenizer.stop_ids if i != tokenizer.eos_id]
    if isinstance(tokenizer, SentencePieceTokenizer):
        others.append(tokenizer.controls["<|end|>"])  # ends a turn in the chat template
    ids |= dict(zip(ENDS[1:], others))
    found |= {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    around = tokenizer.prompt_ids("a")
    found["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id is not None and around[0] == tokenizer.bos_id
    found["tokenizer.ggml.add_eos_token"] = tokenizer.eos_id is not None and around[-1] == tokenizer.eos_id
    if tokenizer.chat_template:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _of_pieces(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    tokens, types, scores = [""] * tokenizer.vocab_size, [NORMAL] * tokenizer.vocab_size, [0.0] * tokenizer.vocab_size
    for i, piece, score in tokenizer.pieces():
        tokens[i] = piece.replace(" ", SPACE)
        if piece.startswith("<0x") and score is None:
            types[i] = BYTE
        elif score is not None:
            scores[i] = float(score)
    for symbol, i in tokenizer.controls.items():
        tokens[i], types[i] = symbol, UNKNOWN if i == tokenizer.unk_id else CONTROL
    return _spelled("llama", "default", tokens, types) | {
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": False,
    }


def _spelled(model: str, pre: str, tokens: list[str], types: list[int]) -> dict[str, Any]:
    named = {"model": model, "pre": pre, "tokens": tokens, "token_type": types}
    return {f"tokenizer.ggml.{name}": value for name, value in named.items()}


def _of_fast(fast: Mapping, tokenizer: HFTokenizer) -> dict[str, Any]:
    model = fast["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"tokenizer: GGUF cannot hold a tokenizer of the kind {model.get('type')}; only BPE")
    tokens, types = [f"[PAD{i}]" for i in range(tokenizer.vocab_size)], [UNUSED] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in fast["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not model.get("byte_fallback"):
        pre, normalizer = _pre_of(fast.get("pre_tokenizer")), fast.get("normalizer")
        if normalizer not in (None, {"type": "NFC"}):
            raise UserError(f"tokenizer: llama.cpp does not normalise texts, and this tokenizer does: {normalizer}")
        return _spelled("gpt2", pre, tokens, types) | {"tokenizer.ggml.merges": merges}
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = UNKNOWN
    for b in range(256):
        if (i := model["vocab"].get(f"<0x{b:02X}>")) is not None:
            types[i] = BYTE
    # The earlier a pair is joined, the higher the score of its piece.
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    scores = [-float(ranks.get(token, len(merges))) if kind == NORMAL else 0.0 for token, kind in zip(tokens, types)]
    prefix = any(step["type"] == "Prepend" for step in _flat(fast.get("normalizer"), "normalizers"))
    prefix |= any(step.get("prepend_scheme", "never") != "never" for step in _flat(fast.get("pre_tokenizer"), "pretokenizers"))
    return _spelled("llama", "default", tokens, types) | {
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _flat(step: Mapping | None, inner: str) -> list[Mapping]:
    return [] if step is None else [part for each in step[inner] for part in _flat(each, inner)] if inner in step else [step]


def _pre_of(pre_tokenizer: Mapping | None) -> str:
    """Return the name of a pre-tokenizer in GGUF."""
    steps = []
    for step in _flat(pre_tokenizer, "pretokenizers"):
        if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            steps += [GPT2] if step.get("use_regex", True) else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            expression = step["pattern"].get("Regex")
            steps.append({GPT2_EXPRESSION: GPT2, r"\p{N}": DIGITS}.get(expression, expression))
        else:
            steps.append(json.dumps(step))
    found = next((name for name, known in STEPS.items() if list(known) == steps), None)
    if found is None:
        raise UserError(f"tokenizer: llama.cpp has no name for the steps that cut a text before its merges: {steps}")
    return found
