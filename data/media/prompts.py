"""Write the tokens of an image or of audio into a prompt: a run of one symbol for each tile or window, and text around it.

The symbols are control symbols of the tokenizer. The text around them is part of the prompt, which the template does not see.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

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
