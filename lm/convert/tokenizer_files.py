"""Export and import tokenizer files. Our SentencePiece model is exported as a `tokenizer.json` with the same ids.

SentencePiece repeatedly merges the neighbours whose joined piece has the best score, the leftmost of equals. `tokenizers` uses
a list of pairs instead. A piece is always formed from the same pair, in any context: its characters merge as in the piece
alone. So that pair is the last merge of encoding the piece alone, and one pair per piece, in the order of scores, is exact.

Pieces contain a space as a space, so a literal `▁` is in no piece and falls back to its bytes, as in
data/text/sentencepiece_tokenizer.py.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from data.text.hf_tokenizer import HFTokenizer, copy_files, has_tokenizer
from data.text.sentencepiece_tokenizer import BOS, CONTROLS, RESERVED, ROLES, UNK, SentencePieceTokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.files import saving


def export_tokenizer(tokenizer: Tokenizer, to: Path, *, max_length: int | None = None) -> None:
    """Write the tokenizer's files into the folder `to`; existing files of the same names are overwritten.

    For our tokenizer: tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json. `transformers` then
    gives our ids after the begin symbol, like `lm.generate`. One difference: a control symbol spelled out in a text becomes
    that symbol, unless `split_special_tokens=True`. For a published tokenizer: the files that it was read from.

    Args: max_length: positions of the model; `transformers` warns beyond.
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
    config["chat_template"] = tokenizer.chat_template
    saving.write(to / "tokenizer.json", fast_tokenizer(tokenizer).to_str(pretty=True))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        saving.write(to / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def import_tokenizer(hf_dir: Path, workdir: Path) -> None:
    """Copy the tokenizer's files of the checkpoint `hf_dir`, if any, into `workdir`, where `load_tokenizer` finds them.

    Raises: UserError if there is a tokenizer that cannot be read; then nothing is written.
    """
    if has_tokenizer(hf_dir):
        load_tokenizer(hf_dir)
    copy_files(hf_dir, workdir)


def fast_tokenizer(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    """Return our tokenizer as a BPE of `tokenizers`, with the same ids for every text without control symbols."""
    vocab = {piece: i for i, piece, _ in tokenizer.pieces()}
    rank = {piece: -score for _, piece, score in tokenizer.pieces() if score is not None}
    merges = [pair for piece in sorted(rank, key=rank.get) if (pair := _last_merge(piece, rank))]
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, byte_fallback=True))
    # No piece crosses a space, so these splits change no ids; words are short and cached.
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(" *[^ ]+| +"), "isolated")
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.bos_id)]
    )
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in CONTROLS])
    return fast


def _last_merge(piece: str, rank: dict[str, float]) -> tuple[str, str] | None:
    """Return the pair of the last merge of `piece`; None for a single character, or if its characters never merge."""
    symbols = list(piece)
    while len(symbols) > 2:
        joined = [(rank.get(a + b, float("inf")), i) for i, (a, b) in enumerate(zip(symbols, symbols[1:]))]
        best, i = min(joined)
        if best == float("inf"):
            return None
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return (symbols[0], symbols[1]) if len(symbols) == 2 else None
