"""The two kinds of tokenizers, and the loader that picks one of them by the files it finds."""

import os
from pathlib import Path

from data.text.fingerprints import check_tokenizer
from data.text.hf_tokenizer import HFTokenizer
from data.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.errors import UserError
from lm.files.gguf import find_gguf
from lm.files.untrusted import check_inside

# Both have the attributes and methods that SentencePieceTokenizer describes; other code in data/ and lm/ uses only these.
Tokenizer = SentencePieceTokenizer | HFTokenizer


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
