"""Write images and audio into a prompt: symbols for them into a template, and their tokens into its result.

A message with media has `content`, text with a placeholder for each medium (data/media/parts.py), and `media`. For a template,
a medium is a symbol in the text, or a part {"type": "image"} for which the template writes the symbol. Both give a symbol in
the rendered text, which the text of the medium then replaces: a run of the symbol for each tile or window, and text around it,
which the template does not see. The symbols are control symbols of the tokenizer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.media.parts import ANY_PLACEHOLDER, KIND_OF
from lm.errors import UserError


class Style(NamedTuple):
    """How a family of models writes media. name: unique.

    symbols: by kind, the symbol that chat templates write for a medium, and that stands for each token of it.
    image(tokens, rows, columns): the text of an image with so many tokens a tile; the grid as in data.media.tiles.Tiles.
    audio(tokens, windows): the text of audio with so many tokens a window. None: the family has no images, or no audio.
    around: all other symbols that these texts may hold, as one text.
    """

    name: str
    symbols: Mapping[str, str]
    image: Callable[[int, int, int], str] | None
    audio: Callable[[int, int], str] | None = None
    around: str = ""


def _idefics3(tokens: int, rows: int, columns: int) -> str:
    around, run = "<fake_token_around_image>", "<image>" * tokens
    tiles = "".join(
        "".join(f"{around}<row_{row}_col_{column}>{run}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    )
    return tiles + ("\n" if rows else "") + f"{around}<global-img>{run}{around}"


def _llava(tokens: int, rows: int, columns: int) -> str:
    if rows:
        raise UserError("LLaVA's prompts have one tile an image; prepare images without tiles")
    return "<image>" * tokens


def _voxtral(tokens: int, windows: int) -> str:
    return "[BEGIN_AUDIO]" + "[AUDIO]" * (tokens * windows)


IMAGE, AUDIO, BEGIN, END = (f"<|reserved_{n}|>" for n in range(4))  # in data/text/sentencepiece_tokenizer.py


def _own_image(tokens: int, rows: int, columns: int) -> str:
    run = IMAGE * tokens
    return BEGIN + (run * columns + "\n") * rows + run + END


def _own_audio(tokens: int, windows: int) -> str:
    return BEGIN + AUDIO * (tokens * windows) + END


_SIDES = range(1, 17)  # published tokenizers have symbols for 6 × 6 tiles
_TILES = "".join(f"<row_{row}_col_{column}>" for row in _SIDES for column in _SIDES)
# Also of SmolVLM.
IDEFICS3 = Style("idefics3", {"image": "<image>"}, _idefics3, around=f"<fake_token_around_image><global-img>{_TILES}")
LLAVA = Style("llava", {"image": "<image>"}, _llava)
VOXTRAL = Style("voxtral", {"audio": "[AUDIO]"}, None, _voxtral, "[BEGIN_AUDIO]")
OWN = Style("own", {"image": IMAGE, "audio": AUDIO}, _own_image, _own_audio, BEGIN + END)  # of our chat template and tokenizer


class Placed(NamedTuple):
    """A medium that is prepared. text: what stands in its place in the prompt, with its tokens."""

    kind: str
    text: str


class Reads(NamedTuple):
    """What a template reads. parts: kinds whose parts it knows. strings: whether it reads content that is text."""

    parts: frozenset[str]
    strings: bool


def placed_in(messages: Sequence[Mapping], symbols: Mapping[str, str] | None) -> list[Placed]:
    """Return the media of messages, in order. Raises: UserError if there are media and the model reads text only."""
    found = [medium for message in messages for medium in message.get("media") or ()]
    for medium in found:
        if symbols is None or not isinstance(medium, Placed):
            raise UserError(f"chat: a message with {medium.kind}, and only text is read here; leave it out")
        if medium.kind not in symbols:
            raise UserError(f"chat: a message with {medium.kind}, and this model reads none; leave it out")
    return found


def with_symbols(
    message: dict[str, Any], symbols: Mapping[str, str], reads: Reads, guard: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return a message for a template: guarded, without `media`, and with a symbol or a part for each medium.

    guard: marks what looks like a symbol in a text or in an object of texts.
    """
    media, content = message.get("media"), message.get("content")
    rest = guard({key: value for key, value in message.items() if key != "media"})
    if not media:
        if isinstance(content, str) and not reads.strings:
            rest["content"] = [{"type": "text", "text": rest["content"]}]
        return rest
    # Each text is guarded alone, because a symbol follows it.
    texts, kinds = ANY_PLACEHOLDER.split(content), [KIND_OF[c] for c in ANY_PLACEHOLDER.findall(content)]
    if kinds != [medium.kind for medium in media]:
        raise UserError(f"chat: a message has {len(media)} media and {len(kinds)} places for them; give as many")
    if not reads.parts and reads.strings:
        rest["content"] = guard(texts[0]) + "".join(symbols[kind] + guard(text) for kind, text in zip(kinds, texts[1:]))
        return rest
    parts = [{"type": "text", "text": guard(texts[0])}] if texts[0] else []
    for kind, text in zip(kinds, texts[1:]):
        parts.append({"type": kind} if kind in reads.parts else {"type": "text", "text": symbols[kind]})
        parts += [{"type": "text", "text": guard(text)}] if text else []
    rest["content"] = parts
    return rest


def expanded(
    text: str, written: list[bool], placed: Sequence[Placed], symbols: Mapping[str, str], mark: str
) -> tuple[str, list[bool]]:
    """Replace each symbol in a rendered text by the text of its medium, which the assistant did not write.

    Args: written: for each character, whether the assistant wrote it. mark: follows the first character of what is no symbol.
    Raises: UserError if the template does not write one symbol for each medium.
    """
    kinds = {symbol: kind for kind, symbol in symbols.items()}
    left = {kind: iter([medium.text for medium in placed if medium.kind == kind]) for kind in symbols}
    any_symbol = "|".join(map(re.escape, sorted(kinds, key=len, reverse=True)))
    new, mask, end, count = [], [], 0, 0
    for match in re.finditer(f"(?:{any_symbol})(?!{mark})", text):
        medium = next(left[kinds[match[0]]], None)
        if medium is None:
            count = -1
            break
        new += [text[end : match.start()], medium]
        mask += written[end : match.start()] + [False] * len(medium)
        end, count = match.end(), count + 1
    if count != len(placed):
        raise UserError(f"chat: the template does not write one symbol for each of {len(placed)} media; use another template")
    return "".join([*new, text[end:]]), mask + written[end:]
