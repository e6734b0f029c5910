"""Tokenizers as published checkpoints have them, trained on the spot: byte-level, byte-fallback and others."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.data.text.test_sentencepiece_tokenizer import corpus

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "\n\n")  # added, yet not special
WORDS = r"'s|\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def texts():
    """Sentences, with what a byte-level vocabulary could merge wrongly."""
    return [*corpus(), "日本語 é \n\n\n <think> a </think> 🙂 <|im_end|>" * 9]


def gpt2() -> Tokenizer:
    """Bytes as characters, words cut by a pattern, nothing put around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ORDINARY])
    return tokenizer


def llama3() -> Tokenizer:
    """The same, with a token before every text."""
    tokenizer = gpt2()
    begin = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    template = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[begin])
    tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    return tokenizer


def llama2(prefix: bool = True) -> Tokenizer:
    """▁ for a space, unknown characters as bytes, a space before a text; without that space it is like Gemma's."""
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, limit_alphabet=60, show_progress=False)
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Replace(" ", "▁")
    learnt.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learnt.train_from_iterator(corpus(), trainer)
    model = json.loads(learnt.to_str())["model"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    vocab = {token: i for i, token in enumerate([*list(model["vocab"])[:3], *bytes_, *list(model["vocab"])[3:]])}
    vocab.setdefault("▁", len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(special)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def folder(path: Path, tokenizer: Tokenizer, **files: dict) -> Path:
    """A checkpoint's folder; `files` are JSON files by their names without .json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


# Pre-tokenizers as their models publish them, and what their tokenizer_config.json names.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3_WORDS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
STEPS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [LLAMA3_WORDS],
    "qwen2": [LLAMA3_WORDS.replace("{1,3}", "")],
    "deepseek-v3": [*DEEPSEEK3_WORDS],
}


def pre_tokenized(name: str) -> Tokenizer:
    """Return a tokenizer whose texts are cut like those of a known model."""
    if name in ("llama 2", "gemma"):
        return llama2(prefix=name == "llama 2")
    cut = [pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in STEPS[name]]
    words = name in ("gpt-2", "smollm")
    tokenizer = gpt2()
    tokenizer.normalizer = normalizers.NFC() if name == "qwen2" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)])
    return tokenizer


NAMED = {"llama 2": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}}
NAMED["gemma"] = NAMED["llama 2"]
BYTE_LEVEL_NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
