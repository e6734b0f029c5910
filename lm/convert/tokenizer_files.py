"""Tokenizer files out and in: our SentencePiece model as a `tokenizer.json` with the same ids, and what a checkpoint has.

SentencePiece merges, of all neighbours that are a piece when joined, those of the best score first, and the leftmost of
equal ones. `tokenizers` goes by a list of pairs instead. A pair joins into a piece in one way only: whatever stands
around it, its characters are merged as they are when they stand alone, so the last step of encoding the piece alone is
the one pair that ever makes it. One pair a piece, in the order of the scores, is therefore exact.

Pieces spell a space as a space here, so a literal `▁` is in no piece and falls back to its bytes, as in data/text/tokenizer.py.
"""

import json
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from data.chat.template import CHAT_TEMPLATE
from data.text.hf_tokenizer import HFTokenizer, copy_files, load_tokenizer, special_ids
from data.text.tokenizer import BOS, CONTROLS, RESERVED, ROLES, UNK, Tokenizer
from lm import saving


class SpecialIds(NamedTuple):
    """The ids that a model's generation needs to know; None and () where nothing names them."""

    bos_id: int | None
    stop_ids: tuple[int, ...]
    pad_id: int | None


def export_tokenizer(
    tokenizer: Tokenizer | HFTokenizer, to: Path, *, max_length: int | None = None, chat_template: str | None = CHAT_TEMPLATE
) -> None:
    """Writes the tokenizer's files into the folder `to`, over files of the same names.

    Of ours: tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json. In `transformers` a text
    then has our ids after the begin symbol, as `lm.generate` puts it there; only a control symbol that is spelled in a
    text becomes that symbol, unless `split_special_tokens=True`. Of a published one: the files that it was read from.

    Args:
      max_length: positions of the model, which `transformers` warns beyond. chat_template: for our tokenizer; None: none.
    """
    tokenizer.save(to)
    if isinstance(tokenizer, HFTokenizer):
        return
    names = {**tokenizer.special_tokens, "additional_special_tokens": [*ROLES, *RESERVED]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    config |= {"model_max_length": max_length} if max_length else {}
    config |= {"chat_template": chat_template} if chat_template else {}
    saving.write(to / "tokenizer.json", fast_tokenizer(tokenizer).to_str(pretty=True))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        saving.write(to / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def import_tokenizer(hf_dir: Path, workdir: Path) -> SpecialIds:
    """Copies what the checkpoint `hf_dir` has of a tokenizer into `workdir`, where `load_tokenizer` finds it.

    A checkpoint without a tokenizer is none the worse. Raises: UserError if it has one that cannot be read.
    """
    if any((hf_dir / name).exists() for name in ("tokenizer.model", "tokenizer.json")):
        tokenizer = load_tokenizer(hf_dir)
        ids = SpecialIds(tokenizer.bos_id, tokenizer.stop_ids, tokenizer.pad_id)
    else:
        named, stop_ids = special_ids(hf_dir, lambda token: None)
        ids = SpecialIds(named["bos"], tuple(stop_ids), named["pad"])
    copy_files(hf_dir, workdir)
    return ids


def fast_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Our tokenizer as byte-pair encoding of `tokenizers`: equal ids for every text without a control symbol in it."""
    vocab = {piece: i for i, piece, _ in tokenizer.pieces()}
    rank = {piece: -score for _, piece, score in tokenizer.pieces() if score is not None}
    merges = [pair for piece in sorted(rank, key=rank.get) if (pair := _last_merge(piece, rank))]
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, byte_fallback=True))
    # No piece goes on over a space, so these cuts change no id, and words are short and cached.
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(" *[^ ]+| +"), "isolated")
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.bos_id)]
    )
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in CONTROLS])
    return fast


def _last_merge(piece: str, rank: dict[str, float]) -> tuple[str, str] | None:
    """The pair that `piece` is made of in the end; None for a single character, or if its characters never come together."""
    symbols = list(piece)
    while len(symbols) > 2:
        joined = [(rank.get(a + b, float("inf")), i) for i, (a, b) in enumerate(zip(symbols, symbols[1:]))]
        best, i = min(joined)
        if best == float("inf"):
            return None
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None
