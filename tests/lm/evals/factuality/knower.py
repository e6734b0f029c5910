"""A small world of people, the tasks' files about it, and models that know it more or less well."""

import json
import math
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lm.evals.factuality.selfcheck import sentences
from lm.evals.judges.endpoint import Reply
from lm.evals.task import Continuation, Generated, Likelihood, Prompt, Rolled, Task, TaskSettings

FIRST = ("Ada", "Bela", "Cyra", "Dora", "Edda")
LAST = ("Lund", "Morr", "Nash", "Oster")
TOWNS = ("Arvo", "Belm", "Corda", "Delve", "Esk", "Fenn", "Gorm", "Holt", "Ister", "Jarl")
JOBS = ("baker", "carpenter", "printer", "painter")
PEOPLE = tuple(f"{first} {last}" for last in LAST for first in FIRST)
GHOSTS = ("Zeno Quirk", "Yves Quirk", "Xena Quirk", "Wim Quirk")
SILENCE = "I don't know"


class Life(NamedTuple):
    town: str
    died: int
    job: str


def life(name: str) -> Life:
    at = PEOPLE.index(name)
    return Life(TOWNS[at % len(TOWNS)], 1901 + 3 * at, JOBS[at % len(JOBS)])


def invented(name: str, salt: object) -> Life:
    """A life that is false in every detail, another one for another salt."""
    true, draw = life(name) if name in PEOPLE else Life("", 0, ""), random.Random(zlib.crc32(f"{name} {salt}".encode()))
    return Life(
        draw.choice([town for town in TOWNS if town != true.town]),
        draw.choice([year for year in range(1801, 1900)]),
        draw.choice([job for job in JOBS if job != true.job]),
    )


class Belief(NamedTuple):
    """life: None if the model knows that it does not know."""

    life: Life | None
    confidence: float


def told(name: str, believed: Life) -> str:
    last = name.split()[1]
    return f"{name} was born in {believed.town}. {name} worked as a {believed.job}. {last} died in {believed.died}."


class Knower:
    """belief: what the model takes a person's life to be, at a draw (salt)."""

    def __init__(self, name: str, belief: Callable[[str, object], Belief]):
        self.name, self.belief = name, belief

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        return [Generated(self._says(prompt), tokens=(1, 2), prompt_tokens=(3,)) for prompt in prompts]

    def _says(self, prompt: Prompt) -> str:
        name = person(prompt.text)
        believed = self.belief(name, prompt.seed if prompt.temperature else 0).life
        if believed is None:
            return f" {SILENCE}."
        return f" {believed.town}" if "Where was" in prompt.text else " " + told(name, believed)

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        return [self._likelihood(request) for request in requests]

    def _likelihood(self, request: Continuation) -> Likelihood:
        name, said = person(request.context), request.continuation
        sure = self.belief(name, 0).confidence
        if said in (" True", " False"):
            return Likelihood(math.log(sure if said == " True" else 1 - sure), True, (1,), (2,))
        tokens = tuple(range(len(said.split()) + 1))
        return Likelihood(len(tokens) * math.log(sure), True, tokens, (2,))

    def rolled(self, texts: Sequence[str]) -> list[Rolled]:
        raise AssertionError("no task here rolls")

    def chat_prompt(self, messages, prefill: str = "") -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" + prefill


def person(text: str) -> str:
    """The one that a prompt is about."""
    return max((*PEOPLE, *GHOSTS), key=text.rfind)


def oracle() -> Knower:
    return Knower("oracle", lambda name, salt: Belief(life(name), 0.99) if name in PEOPLE else Belief(None, 0.5))


def guesser(seed: int) -> Knower:
    """Draws a town, and all else, with the true ones among them."""

    def belief(name: str, salt: object) -> Belief:
        draw = random.Random(zlib.crc32(f"{seed} {name} {salt}".encode()))
        return Belief(Life(draw.choice(TOWNS), draw.choice((1901, 1904)), draw.choice(JOBS)), draw.uniform(0.2, 0.8))

    return Knower("guesser", belief)


def compares(claim: str, texts: Sequence[str]) -> str:
    """A verdict of a claim by the sentences of texts: the same words, or the same but for the last one. A person may
    have several trades."""

    def facts(text: str) -> list[list[str]]:
        return [
            re.sub(rf"\b(?:{'|'.join(FIRST)}) ", "", part).split() for part in re.split(r"[.!?](?:\s|$)", text) if part.strip()
        ]

    (stated,) = facts(claim)
    there = [fact for text in texts for fact in facts(text)]
    if stated in there:
        return "supported"
    rival = "worked" not in stated and any(fact[:-1] == stated[:-1] for fact in there)
    return "contradicted" if rival else "unsupported"


def fact_checker(conversations) -> list[Reply]:
    """A judge model that takes sentences for claims, names the topic for "He", and compares words."""
    replies = []
    for (message,) in conversations:
        shown = re.findall(r"<(document|claim|topic|text)[-\d]*-[0-9a-f]{12}>\n(.*?)\n</", message["content"], re.DOTALL)
        parts = dict(shown)
        if "topic" in parts:
            claims = [
                re.sub(r"^He\b", parts["topic"], sentence) for sentence in sentences(parts["text"]) if "?" not in sentence
            ]
            replies.append(Reply(json.dumps({"claims": claims})))
            continue
        verdict = compares(parts["claim"], [text for kind, text in shown if kind == "document"])
        replies.append(Reply(json.dumps({"verdict": verdict, "reason": "by its words"})))
    return replies


def checked(task: Task) -> Task:
    """The task with that judge, if it has one."""
    return task._replace(chat=fact_checker) if "chat" in task._fields else task


def write(folder: Path, task: str, rows: Sequence[dict]) -> None:
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def world(folder: Path) -> TaskSettings:
    """The files of all factuality tasks, and settings that find them."""
    questions = [{"id": name, "question": f"Where was {name} born?", "answers": [life(name).town]} for name in PEOPLE]
    questions += [{"id": name, "question": f"Where was {name} born?", "answers": [], "answerable": False} for name in GHOSTS]
    write(folder, "closed_book_qa", questions)
    texts = [
        {
            "id": name,
            "prompt": f"Who was {name}?",
            "topic": name,
            "documents": [told(name, life(name))],
            "facts": [f"{name} was born in {life(name).town}.", f"{name} died in {life(name).died}."],
        }
        for name in PEOPLE
    ]
    write(folder, "fact_support", texts)
    write(folder, "selfcheck", [{"id": row["id"], "prompt": row["prompt"]} for row in texts])
    return TaskSettings(data_dir=folder, judge="openai:http://localhost:9/v1")
