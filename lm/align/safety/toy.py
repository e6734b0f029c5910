"""Write data for the toy safety test: they train a model that knows a small world and answers every question about it.

    python -m lm.align.safety.toy --out=DIR

writes four files. For pretraining: pages.jsonl, text of the world, and talk.jsonl, conversations as lines of text. For
fine-tuning: conversations.jsonl, answers to all questions, including forbidden ones, asked directly or by an attack; pages are
mixed in against forgetting. For evaluation: held_out.jsonl, pages that are in none of the other files.
Results on this model show that the mechanism works, and nothing about the safety of another model.
"""

import argparse
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.tasks.safety_world import safety_text, safety_world
from lm import cli
from lm.evals.redteam.attacks import compose
from lm.files.saving import write_lines

FAMILIES = tuple(
    "role_play prefix_injection rot13 prompt_injection refusal_suppression leetspeak translation many_shot crescendo".split()
)
BETWEEN = ("It is about a substance.", "There is much to say about it.")  # answers to turns before the request


def conversations(seed: int, families: Sequence[str] = FAMILIES, direct: float = 0.35, substances: int = 24) -> Iterator[dict]:
    """Yield {"messages"} endlessly: a question about the world, direct or under an attack family, and its answer."""
    rng = random.Random(seed)
    for record in safety_world("train", seed, substances=substances):
        family = "direct" if rng.random() < direct else rng.choice(families)
        answers = iter(BETWEEN)
        turns = [m if m["content"] is not None else m | {"content": next(answers)} for m in compose(family)(record["prompt"])]
        yield {"messages": [*turns, {"role": "assistant", "content": record["completion"]}]}


def write(folder: Path, *, pages: int, talks: int) -> None:
    """Write the four files: `pages` pages, `talks` conversations, and talks/3 other conversations as lines of text."""
    examples = list(itertools.islice(conversations(0), talks))
    for page in itertools.islice(safety_text("train", 1), talks // 10):
        examples.append({"messages": [{"role": "assistant", "content": page["text"]}]})
    plain = itertools.islice(conversations(1), talks // 3)
    write_lines(folder / "pages.jsonl", itertools.islice(safety_text("train", 0), pages))
    write_lines(folder / "talk.jsonl", ({"text": "\n".join(m["content"] for m in talk["messages"]) + "\n"} for talk in plain))
    write_lines(folder / "conversations.jsonl", examples)
    write_lines(folder / "held_out.jsonl", safety_text("valid", 0, valid=100))


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.align.safety.toy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--talks", type=int, default=12000)
    given = parser.parse_args()
    write(given.out, pages=given.pages, talks=given.talks)


if __name__ == "__main__":
    with cli.guard():
        main()
