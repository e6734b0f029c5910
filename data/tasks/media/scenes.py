"""Questions about coloured shapes on a plain ground, drawn on the spot: colour, count, place, neighbour, shape, caption."""

import base64
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.media import library
from data.media.images import encode_png
from data.tasks.splits import exercise, held_out, records
from lm.errors import UserError

COLOURS = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 200, 40), "purple": (140, 60, 180),
    "black": (30, 30, 30), "orange": (250, 130, 20), "pink": (250, 140, 190), "brown": (130, 80, 40), "grey": (130, 130, 130),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = ((255, 255, 255), (235, 230, 220), (215, 230, 240), (225, 240, 225))
# One colour of each shape. Each of these colours and shapes is also in other pairs.
HELD_OUT = frozenset(zip(COLOURS, SHAPES))
SEEN = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)
ABSENT = {pair: divmod(n % 9, 3) for n, pair in enumerate(SEEN)}  # pair: the row and column where train never has it
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
QUESTIONS = {
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} have?",
        "What colour is the shape at the {place}?",
        "Which colour is at the {place}?",
    ),
    "count": ("How many {shape} are there?", "Count the {shape}."),
    "place": ("Where is the {colour} {shape}?", "In which place is the {colour} {shape}?"),
    "neighbour": ("What is {side} the {colour} {shape}?",),
    "shape": ("Which shape is at the {place}?", "What shape does the thing at the {place} have?"),
    "caption": ("What is in the image?", "Describe the image."),
}
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
TRIES = 200


class Asked(NamedTuple):
    """A question, its answer and others of the kind. places: of what is counted, by rows."""

    question: str
    answer: str
    wrong: set[str]
    places: tuple[str, ...] = ()

    def said(self, answer: str, point: int) -> str:
        """Return an answer to it, a count after its places if `point` is 1."""
        return f"{', '.join(self.places)} #### {answer}".strip() if point and answer.isdigit() else answer


class Thing(NamedTuple):
    """A shape in a cell of a grid of three rows and three columns."""

    colour: str
    shape: str
    row: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


def scenes(
    split: str,
    seed: int,
    size: int = 64,
    shapes: int = 4,
    kinds: str = "colour,count,place,neighbour",
    point: int = 0,
    new: str = "scenes",
    valid: int = 500,
) -> Iterator[dict]:
    """Yield records such as "What colour is the circle?" -> "red", with one image; `rejected` is another answer of the kind.

    The kinds are `colour` ("red"), `count` ("2"), `place` ("top left", in a grid of three by three), `neighbour`, the only
    thing on a side of another one ("blue square"), `shape` ("circle") and `caption`, all things row by row ("top left: red
    circle, bottom right: blue square"). No scene of valid is in train.

    Args:
      size: pixels of a side. shapes: a scene has 1 to this many. kinds: of questions.
      point: 1: a count is said after the places, "top left, top right #### 2", as Molmo counts (Deitke et al. 2024). The column
        `answer` is the number alone.
      new: what valid has that train has not. "scenes": nothing but the whole scenes. "things": it asks about a colour, a shape
        and a place (ABSENT) which are together in no image of train. "pairs": it asks about the pairs in HELD_OUT, of a colour
        and a shape, which no image and no text of train shows.
    Raises: UserError without Pillow, or for options out of range.
    """
    library("PIL.ImageDraw", "scenes: drawing")
    if not 24 <= size <= 1024:
        raise UserError(f"scenes: needs size in 24…1024, not size={size}")
    asked_kinds = _checked("scenes", shapes, kinds, point)
    if new not in ("scenes", "things", "pairs"):
        raise UserError(f"scenes: new={new!r} is none of scenes, things, pairs")
    new = new if split == "valid" else "scenes"

    def draw(rng: random.Random) -> tuple[bool, dict]:
        kind = rng.choice(asked_kinds)
        for _ in range(TRIES):
            scene = _scene(rng, shapes, new)
            if (asked := _ask(rng, kind, scene, new != "scenes")) is not None:
                break
        else:
            raise UserError(f"scenes: no question of the kind {kind} in {TRIES} scenes; raise shapes={shapes}")
        if (out := held_out(repr(sorted(scene)))) != (split == "valid"):
            return out, {}
        image = f"data:image/png;base64,{base64.b64encode(encode_png(drawn(scene, size, rng))).decode()}"
        answer, wrong = (asked.said(a, point) for a in (asked.answer, rng.choice(sorted(asked.wrong - {asked.answer}))))
        columns = {"images": [image], "answer": asked.answer, "question": kind}
        return out, exercise("scenes", asked.question, answer, wrong, **columns)

    return records(draw, split, seed, valid)


def scenes_text(
    split: str, seed: int, shapes: int = 4, kinds: str = "colour,count,place,shape", point: int = 0, valid: int = 500
) -> Iterator[dict]:
    """Yield records {"text"}: a scene told in words, as a caption, and up to three questions about it with their answers.

    The options are those of `scenes`, and so is the split: no scene of valid is in train, nor are the things and pairs that
    `new` holds out.
    """
    asked_kinds = _checked("scenes_text", shapes, kinds, point)

    def draw(rng: random.Random) -> tuple[bool, dict]:
        scene = _scene(rng, shapes, "scenes")
        asked = [one for _ in range(3) if (one := _ask(rng, rng.choice(asked_kinds), scene, False))]
        lines = [f"{one.question} {one.said(one.answer, point)}" for one in asked]
        return held_out(repr(sorted(scene))), {"text": "\n".join([f"{_caption(scene)}.", *lines])}

    return records(draw, split, seed, valid)


def _checked(task: str, shapes: int, kinds: str, point: int) -> list[str]:
    """Return the names of kinds of questions. Raises UserError for options of this task that are out of range."""
    if not 2 <= shapes <= 9:
        raise UserError(f"{task}: needs shapes in 2…9, not shapes={shapes}")
    if unknown := [kind for kind in kinds.split(",") if kind not in QUESTIONS]:
        raise UserError(f"{task}: kinds={kinds!r}: {unknown[0]!r} is none of {', '.join(QUESTIONS)}")
    if point not in (0, 1):
        raise UserError(f"{task}: needs point in 0…1, not point={point}")
    return kinds.split(",")


def _scene(rng: random.Random, most: int, new: str) -> list[Thing]:
    """Return 1 to `most` things in different cells, as train has them, but for the first one if `new` is things or pairs."""
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], rng.randint(1, most))
    choices = list(SEEN)
    if rng.random() < 0.5:  # else equal shapes are rare, and most counts are 1
        shape = rng.choice(SHAPES)
        choices = [pair for pair in SEEN if pair[1] == shape] * 3 + choices
    pairs = [rng.choice([pair for pair in choices if ABSENT[pair] != cell]) for cell in cells]
    if new == "things":
        pairs[0] = rng.choice([pair for pair in SEEN if ABSENT[pair] == cells[0]])
    elif new == "pairs":
        pairs[0] = rng.choice(sorted(HELD_OUT))
    return [Thing(*pair, *cell) for pair, cell in zip(pairs, cells)]


def _ask(rng: random.Random, kind: str, scene: list[Thing], first: bool) -> Asked | None:
    """Return a question about a scene, or None if this scene has no such one. first: ask of the first thing."""
    thing = scene[0] if first else rng.choice(scene)
    text = rng.choice(QUESTIONS[kind])
    same = [other for other in scene if other.shape == thing.shape]
    if kind == "colour" and (len(same) == 1 or "{place}" in text):
        return Asked(text.format(shape=thing.shape, place=thing.place), thing.colour, set(COLOURS))
    if kind == "shape":
        return Asked(text.format(place=thing.place), thing.shape, set(SHAPES))
    if kind == "caption":
        return Asked(text, _caption(scene), {_caption([t, *(o for o in scene if o is not thing)]) for t in _recoloured(thing)})
    if kind == "count":
        shape = thing.shape if first or rng.random() < 0.85 else rng.choice(SHAPES)  # some are not there at all
        counted = sorted((other.row, other.column, other.place) for other in scene if other.shape == shape)
        n, places = len(counted), tuple(place for *_, place in counted)
        return Asked(text.format(shape=PLURALS[shape]), str(n), {str(m) for m in range(max(0, n - 2), n + 3)}, places)
    if [other.name for other in scene].count(thing.name) > 1:
        return None
    if kind == "place":
        places = {f"{row} {column}" for row in ROWS for column in COLUMNS}
        return Asked(text.format(**thing._asdict()), thing.place, places)
    if kind == "neighbour":
        side, (down, right) = rng.choice(list(SIDES.items()))
        there = [o for o in scene if down * (o.row - thing.row) + right * (o.column - thing.column) > 0]
        if len(there) == 1:
            return Asked(text.format(side=side, **thing._asdict()), there[0].name, {" ".join(pair) for pair in SEEN})
    return None


def _caption(scene: list[Thing]) -> str:
    return ", ".join(f"{thing.place}: {thing.name}" for thing in sorted(scene, key=lambda thing: (thing.row, thing.column)))


def _recoloured(thing: Thing) -> list[Thing]:
    return [thing._replace(colour=colour) for colour, shape in SEEN if shape == thing.shape]


def drawn(scene: list[Thing], size: int, rng: random.Random) -> np.ndarray:
    """Return a scene as uint8 [size, size, 3]. The size, the place in the cell and the ground are random."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), rng.choice(GROUNDS))
    pen, cell = ImageDraw.Draw(image), size / 3
    for thing in scene:
        r = cell * rng.uniform(0.28, 0.42)
        slack = cell / 2 - r - 1
        x = (thing.column + 0.5) * cell + rng.uniform(-slack, slack)
        y = (thing.row + 0.5) * cell + rng.uniform(-slack, slack)
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), colour)
        elif thing.shape == "square":
            pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), colour)
        elif thing.shape == "triangle":
            pen.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], colour)
        else:
            pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), colour)
            pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), colour)
    return np.asarray(image)
