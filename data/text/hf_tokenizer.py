"""Tokenizers of published checkpoints: `tokenizer.json`, read by Hugging Face's `tokenizers`.

The ids are those of `tokenizers`, with one exception: the text of a special token is encoded as plain text, as in our own
tokenizers. The JSON files in the same folder name the begin, end and padding tokens.
"""

import collections
import contextlib
import copy
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tokenizers

from data.text import gguf_tokenizer
from data.text.sentencepiece_tokenizer import SPACE, Decoder, scrub
from lm.errors import UserError
from lm.files import saving
from lm.files import untrusted as strangers
from lm.files.gguf import find_gguf, open_gguf
from lm.files.untrusted import check_inside, content, parsed, short

TEMPLATE = "chat_template.jinja"
BASE_TEMPLATE = (Path(__file__).parent / "base_chat_template.jinja").read_text(encoding="utf-8")  # for base models
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", TEMPLATE, "generation_config.json")
FILES = (*SETTINGS, "tokenizer.json", "tokenizer.model")
MAX_IDS = 1 << 24  # of a vocabulary; the largest published ones have 262,144
MAX_TOKENIZER = 128 << 20  # bytes
READ_AS_JSON = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


class HFTokenizer(Decoder):
    """A `tokenizer.json`, the one in a folder, or that of a GGUF file, with the interface of SentencePieceTokenizer.

    Attributes that differ from its own:
      vocab_size: V, the largest id + 1.
      bos_id, eos_id, unk_id: None if there is no such token. pad_id: default: the end token, or 0.
      stop_ids: eos_id is the first.
      chat_template: None if there is none.
      json: the content of tokenizer.json.
      bytes_per_token: the sum over the ids of a text is its length if the vocabulary covers every byte. It is one more if the
        tokenizer puts a space before a text (Llama 2, Mistral).

    Raises: UserError if the file is missing or `tokenizers` cannot read it.
    """

    def __init__(self, path: str | os.PathLike):
        file = self._path = Path(path)
        files = files_at(file)
        if "tokenizer.json" not in files:
            why = "it has none" if find_gguf(file) else "No such file or directory"
            raise UserError(f"tokenizer: cannot read {file} ({why}); name a tokenizer.json")
        with _refused(f"{file} is no tokenizer.json that tokenizers can read"):
            self.json = files["tokenizer.json"].decode()
            whole = parsed(self.json)
            self._tokenizer = _unbounded(self.json)
        self._tokenizer.encode_special_tokens = True
        self._changed: dict[frozenset[str], tokenizers.Tokenizer] = {}

        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self.vocab_size = max(vocab.values(), default=-1) + 1
        if not 1 <= self.vocab_size <= MAX_IDS or max(added, default=0) >= self.vocab_size:
            raise UserError(f"tokenizer: {file} has ids up to {self.vocab_size - 1:,}; 0 to {MAX_IDS - 1:,} are possible")
        self.controls = {token.content: i for i, token in sorted(added.items()) if token.special}
        self.is_harmony = {"<|start|>", "<|channel|>", "<|message|>", "<|end|>"} <= self.controls.keys()
        self._spelled = {token.content: i for i, token in sorted(added.items()) if not token.special}
        table = [b""] * self.vocab_size
        with _refused(f"{file} has a decoder that fails"):
            spellings = _spellings(self._tokenizer, whole.get("decoder"), vocab)
        for token, spelling in zip(vocab, spellings, strict=True):
            table[vocab[token]] = spelling
        for i, token in added.items():
            table[i] = b"" if token.special else token.content.encode()
        self.set_bytes(table)

        named, ids = special_ids(files, self._tokenizer.token_to_id)
        self.bos_id, self.eos_id, self.unk_id = (named[name] for name in ("bos", "eos", "unk"))
        self.stop_ids = tuple(ids)
        self.eos_id = ids[0] if self.eos_id is None and ids else self.eos_id
        self.pad_id = next(i for i in (named["pad"], self.eos_id, 0) if i is not None)
        tokens = {name: i if i is None else self._tokenizer.id_to_token(i) for name, i in named.items()}
        self.special_tokens = {f"{name}_token": token for name, token in tokens.items() if token is not None}
        self.chat_template = _template(files)
        self._given_template = False
        made_from = json.dumps([self.json, self.bos_id, self.eos_id, self.pad_id])
        self.fingerprint = hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_reader"} | {"_changed": {}}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._tokenizer.encode_special_tokens = True  # `tokenizers` does not pickle it

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without begin and end symbols. A lone surrogate is encoded as U+FFFD.

        Raises, as the other ways to encode: UserError if a pattern of tokenizer.json tries too many ways to match the text.
        """
        with _refused(f"{self._path} fails on a text"):
            return _alone(self._tokenizer.encode_batch_fast, text).ids

    def encode_many(self, texts: Iterable[str], *, threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of many texts, each int32 [n]. `threads` has no effect: `tokenizers` has its own threads."""
        with _refused(f"{self._path} fails on a text"):
            encoded = self._tokenizer.encode_batch_fast([scrub(text) for text in texts], add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encoded]

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt, with the special tokens that `tokenizer.json` adds to a text.

        Like transformers 5, and unlike 4, this ignores `add_bos_token` in `tokenizer_config.json`.
        """
        with _refused(f"{self._path} fails on a text"):
            return _alone(self._tokenizer.encode_batch_fast, text, add_special_tokens=True).ids

    def pieces(self, word: str) -> list[tokenizers.Token]:
        """Return the pieces into which the model cuts a word, which is written in the tokenizer's spelling."""
        return self._tokenizer.model.tokenize(word)

    def words(self, texts: Iterable[str]) -> collections.Counter[str]:
        """Return how often each word occurs in texts: what the model cuts into pieces, in the tokenizer's spelling.

        A tokenizer that does not split texts gives words that begin with their spaces.
        """
        found: collections.Counter[str] = collections.Counter()
        normalizer, splitter = self._tokenizer.normalizer, self._tokenizer.pre_tokenizer
        for text in texts:
            text = scrub(text) if normalizer is None else normalizer.normalize_str(scrub(text))
            if splitter is None:
                found.update(re.findall(f"{SPACE}*[^{SPACE}]+", text))
            else:
                found.update(word for word, _ in splitter.pre_tokenize_str(text))
        return found

    def with_chat_template(self, template: str) -> "HFTokenizer":
        """Return this tokenizer with another chat template, which is saved with it."""
        other = copy.copy(self)
        other.chat_template, other._given_template = template, True
        return other

    def save(self, folder: Path) -> None:
        """Copy the files to `folder`, each atomically; `tokenizer.json` after the files that belong to it."""
        if self._given_template:
            saving.write(folder / TEMPLATE, self.chat_template)
        copy_files(self._path, folder)

    def chat_symbols(self, template: str) -> dict[str, int]:
        """Return tokens that only the template may write: special tokens, and added tokens that occur in the template."""
        spelled = {token: i for token, i in self._spelled.items() if token in template and not token.isspace()}
        return self.controls | spelled

    def encode_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a rendered chat, including special tokens, and the character span of each."""
        encoding = _alone(self._reader.encode_batch, text)
        return encoding.ids, encoding.offsets

    def encode_spans(self, text: str, symbols: Collection[str] = ()) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text`, with `symbols` encoded as plain text, and the character span [begin, end) of each id."""
        encoding = _alone(self._without(frozenset(symbols).difference(self.controls)).encode_batch, text)
        return encoding.ids, encoding.offsets

    @functools.cached_property
    def _reader(self) -> tokenizers.Tokenizer:
        """A second tokenizer that reads special tokens; one switchable tokenizer would not be thread-safe."""
        return _unbounded(self.json)

    def _without(self, symbols: frozenset[str]) -> tokenizers.Tokenizer:
        if not symbols:
            return self._tokenizer
        if symbols in self._changed:
            return self._changed[symbols]
        data = json.loads(self.json)
        for token in data["added_tokens"]:
            token["special"] |= token["content"] in symbols
        changed = _unbounded(json.dumps(data))
        changed.encode_special_tokens = True
        self._changed[symbols] = changed
        return changed


def _alone(encode_batch: Callable[..., list[tokenizers.Encoding]], text: str, add_special_tokens: bool = False):
    """Return the encoding of one text. `encode` of `tokenizers` would stop all other threads as long as it runs."""
    return encode_batch([scrub(text)], add_special_tokens=add_special_tokens)[0]


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise UserError for any error of `tokenizers`, which has no type of its own. A panic of Rust is not even an Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise UserError(f"tokenizer: {what} ({' '.join(str(error).split())[:500]})") from error


def _unbounded(file: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json, which may enable truncation and padding of every text."""
    tokenizer = tokenizers.Tokenizer.from_str(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_ids(files: Mapping[str, bytes], token_to_id) -> tuple[dict[str, int | None], list[int]]:
    """Return the ids of bos, eos, pad and unk, and all ids that end a completion, from files of `files_at`.

    The tokenizer's files take precedence over the model's, also if they set a token to null.

    Args: token_to_id: maps a token to its id or None.
    """
    config, model = _parsed(files, "tokenizer_config.json"), _ids_in(_parsed(files, "generation_config.json"))
    names = _parsed(files, "special_tokens_map.json") | config
    named: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad", "unk"):
        if f"{name}_token" in names:
            token = names[f"{name}_token"]
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(token, str):
                raise UserError(f"tokenizer: {name}_token={short(token)} in its settings must be a text")
            named[name] = None if token is None else token_to_id(token)
        else:
            named[name] = next(iter(_listed(model.get(f"{name}_token_id"))), None)
    ends = [named["eos"], *_listed(model.get("eos_token_id"))]
    return named, list(dict.fromkeys(i for i in ends if i is not None))


def files_at(path: Path) -> dict[str, bytes]:
    """Return the tokenizer's files by name: of a folder, of a tokenizer.json and its folder, or made from a GGUF file.

    The model's `config.json` is not among them, so the token ids in it are added to `generation_config.json`.
    """
    if (gguf := find_gguf(path)) is not None:
        return gguf_tokenizer.tokenizer_files(open_gguf(gguf))
    folder, fast = (path, "tokenizer.json") if path.is_dir() else (path.parent, path.name)
    found = {}
    for name in FILES:
        file = folder / (fast if name == "tokenizer.json" else name)
        if not file.exists():
            continue
        if name != fast or path.is_dir():
            check_inside(folder, file)
        if name in READ_AS_JSON:
            _read(file)  # an error names the file
        found[name] = content(file, MAX_TOKENIZER)
        if name == TEMPLATE:
            try:
                found[name].decode()
            except UnicodeDecodeError as error:
                raise UserError(f"tokenizer: {file} is no text in UTF-8 ({error}); repair or delete it") from None
    is_run = (folder / "checkpoints").is_dir()  # its config.json holds no ids, and lm/runs/workdir.py handles a damaged one
    before = _parsed(found, "generation_config.json")
    ids = ({} if is_run else _ids_in(_read(folder / "config.json"))) | _ids_in(before)
    if ids != _ids_in(before):
        found["generation_config.json"] = (json.dumps(before | ids, indent=2) + "\n").encode()
    return found


def copy_files(source: Path, folder: Path) -> None:
    """Write the tokenizer's files at `source` into `folder`, each whole or not at all; `tokenizer.json` after the settings."""
    for name, data in files_at(source).items():
        saving.write(folder / name, data)


def has_tokenizer(path: Path) -> bool:
    """Return whether a folder or a GGUF file has a tokenizer of any kind."""
    if (gguf := find_gguf(path)) is not None:
        return gguf_tokenizer.has_tokenizer(open_gguf(gguf))
    return any((path / name).exists() for name in ("tokenizer.model", "tokenizer.json"))


def _template(files: Mapping[str, bytes]) -> str | None:
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    template = _parsed(files, "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = (item for item in template if isinstance(item, dict) and item.get("name") == "default")
        template = next((item.get("template") for item in named), None)
    if template is not None and not isinstance(template, str):
        raise UserError(f"tokenizer: chat_template={short(template)} in tokenizer_config.json must be a text")
    return template


def _parsed(files: Mapping[str, bytes], name: str) -> dict:
    value = parsed(files.get(name, b"{}"))
    return value if isinstance(value, dict) else {}


def _ids_in(config: dict) -> dict:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {key: config[key] for key in keys if config.get(key) is not None}
    for key, ids in found.items():
        if not all(type(i) is int and 0 <= i < 1 << 31 for i in (ids if isinstance(ids, list) else [ids])):
            raise UserError(f"tokenizer: {key}={short(ids)} must be an id, or a list of ids")
    return found


def _listed(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def _read(file: Path) -> dict:
    try:
        value = strangers.read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer: {file} is not JSON ({error}); repair or delete it") from None
    return value if isinstance(value, dict) else {}


def _spellings(tokenizer: tokenizers.Tokenizer, decoder: dict | None, vocab: Iterable[str]) -> list[bytes]:
    """Return the bytes of each token when it follows another token.

    A byte-level vocabulary maps bytes to characters (Radford et al. 2019). With byte fallback there are tokens such as
    <0x41>. For all other tokens the decoder of the file gives the text that a token adds.
    """
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        table = _byte_of_character()
        return [bytes(table[c] for c in token) if table.keys() >= set(token) else token.encode() for token in vocab]
    bytes_ = {f"<0x{b:02X}>": bytes([b]) for b in range(256)} if "ByteFallback" in kinds else {}
    if tokenizer.decoder is None:
        return [f" {token}".encode() for token in vocab]
    before = tokenizer.decoder.decode(["a"])
    return [bytes_.get(t) or tokenizer.decoder.decode(["a", t]).removeprefix(before).encode() for t in vocab]


def _kinds(decoder: dict | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", ())))


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's map from characters to bytes: printable Latin-1 maps to itself, other bytes to U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}
