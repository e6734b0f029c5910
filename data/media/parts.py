"""Find the images and audio of messages: in their content parts, and in columns of their record.

A message's content may be a list of parts, as in OpenAI's API: {"type": "text", "text": …}, {"type": "image_url", "image_url":
{"url": …}}, {"type": "input_audio", "input_audio": {"data": …, "format": …}}. Hugging Face's parts of type `image` and `audio`
name a file under `url`, `path` or their own type, or take the next one of the record's columns `image`, `images`, `audio`,
`audios`. A column holds {"bytes", "path"}, or a list of these. If no part asks for the media of a column, they stand before the
text of the first message of the user.

A file is bytes, a data: URL in base64, or a path relative to the data file, in whose folder it must lie. Nothing is fetched.
Where a medium stands in the text, there is a PLACEHOLDER: a noncharacter of Unicode, which no text may hold.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import xxhash

from data.media import audio, images
from lm.errors import UserError
from lm.files.untrusted import check_inside, content, short

KINDS = ("image", "audio")
COLUMNS = {f"{kind}{ending}" for kind in KINDS for ending in ("", "s")}
PLACEHOLDER = {"image": "\ufdd0", "audio": "\ufdd1"}
KIND_OF = {character: kind for kind, character in PLACEHOLDER.items()}
ANY_PLACEHOLDER = re.compile("[\ufdd0\ufdd1]")
MAX_BYTES = {"image": images.MAX_BYTES, "audio": audio.MAX_BYTES}
MAX_MEDIA = 64  # of a conversation, so that its arrays fit into memory
HOW = "give a path relative to the data file, or data:…;base64,…"


class Medium(NamedTuple):
    """An image or audio of a message.

    kind: one of KINDS. source: the file's bytes, or its path in `folder`; before `resolved`, what the record says. where: for
    errors.
    """

    kind: str
    source: Any
    where: str
    folder: str | None = None

    def read(self) -> bytes:
        """Return the bytes of the file. Raises: UserError if it cannot be read or is too large."""
        if isinstance(self.source, bytes):
            return self.source
        path = os.path.join(self.folder, self.source)
        try:
            return content(path, MAX_BYTES[self.kind])
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise UserError(f"{self.where}: cannot read {path} ({getattr(error, 'strerror', None) or error}); {HOW}") from None


def text_and_media(given: Any, where: str) -> tuple[str, list[Medium]] | None:
    """Return the text of a message's content, with placeholders for its media, and these; None if it is no text and no list.

    Without media, the text is left as it is. With media, a placeholder that the text itself holds becomes U+FFFD.
    Raises: UserError for a part of no known type, or a malformed one.
    """
    if isinstance(given, str):
        return given, []
    if not isinstance(given, Sequence) or not all(isinstance(part, Mapping) for part in given):
        return None
    found = [_part(part, f"{where}, part {n}") for n, part in enumerate(given, start=1)]
    media = [part for part in found if isinstance(part, Medium)]
    if not media:
        return "".join(found), []
    texts = (PLACEHOLDER[p.kind] if isinstance(p, Medium) else ANY_PLACEHOLDER.sub("\ufffd", p) for p in found)
    return "".join(texts), media


def _part(part: Mapping, where: str) -> str | Medium:
    kind = part.get("type", "text")
    if kind in ("image_url", "audio_url"):  # audio_url: vLLM's
        given = part.get(kind)
        url = given.get("url") if isinstance(given, Mapping) else given
        if not isinstance(url, str):
            raise UserError(f"{where}: no url in it; write {{'type': '{kind}', '{kind}': {{'url': …}}}}")
        return Medium(kind.removesuffix("_url"), url, where)
    if kind == "input_audio":
        given = part.get(kind)
        if not isinstance(given, Mapping) or not isinstance(given.get("data"), str):
            raise UserError(
                f"{where}: no data in it; write {{'type': '{kind}', '{kind}': {{'data': BASE64, 'format': 'wav'}}}}"
            )
        data = given["data"]
        return Medium("audio", data if data.startswith("data:") else f"data:;base64,{data}", where)
    if kind in KINDS:
        return Medium(kind, next((part[key] for key in (kind, "url", "path") if part.get(key) is not None), None), where)
    if isinstance(part.get("text"), str):
        return part["text"]
    raise UserError(f"{where} is of type {short(kind)}; known are text, image_url, input_audio, image and audio")


def columns_of(values: Mapping, asked: Sequence[str] = ()) -> dict[str, list]:
    """Return the files in the columns of a record by kind, as the record has them.

    asked: the kinds for which a plain string is a path; otherwise it may be anything, and only data: URLs count.
    """
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for key in (kind, f"{kind}s"):
            value = values.get(key)
            for item in value if isinstance(value, list | tuple) else [value]:
                is_file = isinstance(item, bytes) or (isinstance(item, Mapping) and not {"bytes", "path"}.isdisjoint(item))
                if is_file or (isinstance(item, str) and (kind in asked or item.startswith("data:"))):
                    found[kind].append(item)
    return found


def as_text(messages: Sequence[Mapping]) -> list[dict]:
    """Return messages without media, for a record of what was asked: with notes as `noted` writes them."""
    found = []
    for message in messages:
        rest = {key: value for key, value in message.items() if key != "media"}
        found.append(rest | ({"content": noted(message["content"], message)} if message.get("media") else {}))
    return found


def media_keys(values: Mapping) -> set[str]:
    """Return the names of the columns of a record that hold images or audio."""
    return {key for kind, files in columns_of(values).items() if files for key in (kind, f"{kind}s")}


def digest(message: Mapping) -> str:
    """Return a hash of the media of a message: of their bytes, or of their paths; "" if there are none."""
    sources = (medium.source for medium in message.get("media", ()))
    sources = (source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source for source in sources)
    return "".join(f"\0{xxhash.xxh3_128_hexdigest(source)}" for source in sources)


def noted(text: str, message: Mapping) -> str:
    """Return the text of a message with a note in the place of each medium: its kind, and its bytes and hash or its path."""
    media = iter(message.get("media") or ())

    def note(medium: Medium | None) -> str:
        if medium is None:
            return ""
        if not isinstance(medium.source, bytes):
            return f"[{medium.kind}: {short(medium.source)}]"
        return f"[{medium.kind}: {len(medium.source)} bytes, sha256 {hashlib.sha256(medium.source).hexdigest()[:16]}]"

    return ANY_PLACEHOLDER.sub(lambda _: note(next(media, None)), text)


def resolved(parts: Sequence[list[dict]], values: Mapping, folder: str | None, where: str) -> list[list[dict]]:
    """Return lists of messages whose media are all found, as bytes or as a path that exists in `folder`.

    Args:
      parts: the prompt, and its continuations, each with messages as data/chat/messages.py makes them: `content`, and `media`
        where there are any. A continuation takes files of the columns from where the prompt ended.
      values: the record. folder: that of the data file; None: paths are refused.
    Raises: UserError with the place, if a file is missing, too large or outside of the folder, if a column has too many or too
      few files, or if there are more than MAX_MEDIA.
    """
    if COLUMNS.isdisjoint(values) and not any("media" in message for messages in parts for message in messages):
        return list(parts)
    asked = {medium.kind for messages in parts for m in messages for medium in m.get("media", ()) if medium.source is None}
    columns = columns_of(values, tuple(asked))
    if not any(columns.values()) and not any("media" in message for messages in parts for message in messages):
        return list(parts)
    before = {kind: files for kind, files in columns.items() if files and kind not in asked}
    parts = [_before_the_text(parts[0], before, where), *parts[1:]]
    begun, found = dict.fromkeys(KINDS, 0), []
    for n, messages in enumerate(parts):
        taken, new = dict(begun), []
        for message in messages:
            media = [_resolved(medium, columns, taken, folder) for medium in message.get("media", ())]
            new.append(message | ({"media": media} if media else {}))
        found.append(new)
        begun = taken if n == 0 else begun
        if n > 0 or len(parts) == 1:
            _check_counts(columns, taken, where)
        if sum(len(message.get("media", ())) for message in (*found[0], *new)) > MAX_MEDIA:
            raise UserError(f"{where}: a conversation of more than {MAX_MEDIA} images and audio; cut it into several")
    return found


def _before_the_text(messages: list[dict], columns: Mapping[str, list], where: str) -> list[dict]:
    if not columns:
        return messages
    place = next((n for n, message in enumerate(messages) if message["role"] == "user"), None)
    if place is None:
        raise UserError(f"{where}: a column of {' and '.join(columns)}, but no message of the user that could show it")
    message = messages[place]
    media = [Medium(kind, None, f"{where}, column {kind}") for kind, files in columns.items() for _ in files]
    text = message["content"] if "media" in message else ANY_PLACEHOLDER.sub("\ufffd", message["content"])
    text = "".join(PLACEHOLDER[medium.kind] for medium in media) + text
    new = message | {"content": text, "media": media + message.get("media", [])}
    return [*messages[:place], new, *messages[place + 1 :]]


def _check_counts(columns: Mapping[str, list], taken: Mapping[str, int], where: str) -> None:
    for kind, files in columns.items():
        if taken[kind] and taken[kind] != len(files):
            raise UserError(
                f"{where}: its messages have {taken[kind]} parts of type {kind} without a file, and its columns {kind} and "
                f"{kind}s hold {len(files)}; give as many"
            )


def _resolved(medium: Medium, columns: Mapping[str, list], taken: dict[str, int], folder: str | None) -> Medium:
    kind, source, where, _ = medium
    if source is None:
        n, taken[kind] = taken[kind], taken[kind] + 1
        source = columns[kind][n] if n < len(columns[kind]) else None
        if source is None:
            raise UserError(f"{where}: no file for it in the part, nor in a column {kind} or {kind}s of the record; {HOW}")
    if isinstance(source, Mapping):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if isinstance(source, str):
        source = _from_base64(source, kind, where) if source.startswith("data:") else _path(source, folder, where)
    if not isinstance(source, str | bytes):
        raise UserError(f"{where}: a file is {type(source).__name__}, not bytes or a path; {HOW}")
    if len(source) > MAX_BYTES[kind]:
        raise UserError(f"{where}: {kind} of {len(source):,} bytes, and it may have {MAX_BYTES[kind]:,}; make it smaller")
    return Medium(kind, source, where, folder)


def _from_base64(url: str, kind: str, where: str) -> bytes:
    begin, comma, data = url.partition(",")
    if not comma or not begin.endswith(";base64"):
        raise UserError(f"{where}: {short(url[:40])} is no data: URL in base64; write data:…;base64,…")
    if len(data) > MAX_BYTES[kind] * 4 // 3 + 4:
        raise UserError(
            f"{where}: {kind} of {len(data):,} characters, and it may have {MAX_BYTES[kind]:,} bytes; make it smaller"
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: its data is not base64 ({error}); encode it again") from None


def _path(given: str, folder: str | None, where: str) -> str:
    """Return a path in the folder. Raises: UserError for another URL, a missing file, or one outside of the folder."""
    if folder is None:
        raise UserError(
            f"{where}: {short(given)} is not fetched, and only files in data: URLs are taken here; write data:…;base64,…"
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", given):
        local = re.fullmatch(r"(?i:file):(?://(?:localhost)?(?=/))?(?!//)(.+)", given)
        if not local:
            raise UserError(f"{where}: {short(given)} is not fetched: download it into the folder of the data file and {HOW}")
        given = unquote(local[1])
    path = Path(folder, given)
    try:
        check_inside(Path(folder), path)
        if path.is_file():
            return given
    except (OSError, ValueError):
        pass
    except UserError:
        raise UserError(
            f"{where}: {short(given)} leads out of {folder}, the folder of the data file; copy the file there"
        ) from None
    raise UserError(f"{where}: no file {short(given)} in {folder}; {HOW}")
