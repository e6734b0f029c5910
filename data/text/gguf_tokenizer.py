"""Tokenizers in GGUF files: read as the files of a Hugging Face tokenizer, and written from one of ours.

`tokenizer.ggml.model` is "gpt2", a byte-level BPE (Radford et al. 2019) that cuts a text first by the expressions that
`tokenizer.ggml.pre` names; or "llama", a SentencePiece BPE with a score for each piece (Kudo and Richardson 2018). The
expressions are those of the models' `tokenizer.json` and of llama.cpp's src/llama-vocab.cpp.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.text.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from lm.errors import UserError
from lm.files.gguf import GGUFFile

if TYPE_CHECKING:
    from data.text.hf_tokenizer import HFTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> tokenizer.ggml.NAME_token_id
ENDS = ("eos", "eot", "eom")  # ids that end a completion

GPT2_EXPRESSION = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Steps that cut a text before the merges: regular expressions, GPT-2's own, single digits.
GPT2, DIGITS = "GPT2", "DIGITS"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{SPACES}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|\p{{N}}%s"
CASED += rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{SPACES}"
LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
STEPS = {
    "gpt-2": (GPT2,),
    "smollm": (DIGITS, GPT2),
    "llama-bpe": (f"{CONTRACTIONS}|{WORDS % '{1,3}'}",),
    "qwen2": (f"{CONTRACTIONS}|{WORDS % ''}",),
    "tekken": (CASED % ("", "", ""),),
    "gpt-4o": (CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?", "{1,3}"),),
    "deepseek-llm": (r"[\r\n]", rf"\s?[{LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", DIGITS),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        + SPACES,
    ),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
SAME = {  # other names of the same steps
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe", "pixtral"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "gpt-2": ("mpt", "olmo", "jais", "phi-2", "trillion"),
    "gpt-4o": ("llama4",),
}
PRE = {name: name for name in STEPS} | {other: name for name, others in SAME.items() for other in others}
BEGINS = ("llama-bpe", "tekken")  # byte-level tokenizers that begin a text with the BOS token unless the file says otherwise
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


def tokenizer_settings(tokenizer: "HFTokenizer | SentencePieceTokenizer", size: int) -> dict[str, Any]:
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


def _of_fast(fast: Mapping, tokenizer: "HFTokenizer") -> dict[str, Any]:
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
