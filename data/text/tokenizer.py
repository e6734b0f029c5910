"""The interface that all tokenizers share, and the loader that picks one of them by the files it finds."""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from data.text.fingerprints import check_tokenizer
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.errors import UserError
from lm.files.gguf import find_gguf
from lm.files.untrusted import check_inside


@runtime_checkable
class Tokenizer(Protocol):
    """What code in data/ and lm/ uses of a tokenizer. Implemented by SentencePieceTokenizer and HFTokenizer.

    Attributes:
      vocab_size: V, the number of ids, or the largest id + 1.
      bos_id, eos_id: the begin and the end symbol, or None if there is none. pad_id: the padding.
      stop_ids: the ids that end a completion.
      controls: control symbol -> id. Text never encodes to these ids.
      special_tokens: the special tokens by their names in chat templates, such as `bos_token`.
      chat_template: the Jinja template that belongs to the tokenizer, or None.
      bytes_per_token: int32 [V], the UTF-8 bytes of an id within a text; 0 for a control symbol.
      fingerprint: hex digest; equal for equal tokenizers.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int
    stop_ids: tuple[int, ...]
    controls: dict[str, int]
    special_tokens: dict[str, str]
    chat_template: str | None
    bytes_per_token: np.ndarray
    fingerprint: str

    def __hash__(self) -> int:
        """Return a hash of this object, for caches."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without begin and end symbols."""

    def encode_many(self, texts: Iterable[str], *, threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of many texts, each int32 [n]."""

    def encode_spans(self, text: str, symbols: Collection[str] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text`, with `symbols` encoded as plain text, and the character span [begin, end) of each id."""

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt: those of `text` and the special tokens that the tokenizer puts around it."""

    def chat_symbols(self, template: str) -> dict[str, int]:
        """Return the symbols that only this chat template may write, with their ids."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`. Invalid UTF-8 becomes U+FFFD."""

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes of `ids` within a text; control symbols give none."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads into `folder`."""


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Load our `tokenizer.model`, a `tokenizer.json`, a folder with either (with both, ours is used), or that of a GGUF file.

    Raises: UserError if there is no readable tokenizer, or if the tokenizer in a workdir is not that of its run.
    """
    path = Path(path)
    if path.suffix == ".json" or find_gguf(path):
        return HFTokenizer(path)
    if not path.is_dir():
        return SentencePieceTokenizer(path)
    tokenizer = _in_folder(path)
    check_tokenizer(path, tokenizer.fingerprint)
    return tokenizer


def _in_folder(path: Path) -> Tokenizer:
    fast = path / "tokenizer.json"
    for file in (fast, path / "tokenizer.model"):
        if file.exists():
            check_inside(path, file)
    if (path / "tokenizer.model").exists():
        try:
            return SentencePieceTokenizer(path / "tokenizer.model")
        except UserError as error:
            if not fast.exists():
                raise UserError(
                    f"{error}, or put a tokenizer.json beside it, which transformers writes: "
                    f"AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
                ) from None
    if not fast.exists():
        raise UserError(f"tokenizer: {path} holds neither tokenizer.model nor tokenizer.json; name a folder with one of them")
    return HFTokenizer(fast)
