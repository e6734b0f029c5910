"""Subjects with known likings, and small benchmarks in the published formats, for the tests of bias measures."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.evals.task import Continuation, Generated, Likelihood, Prompt


class Planted:
    """A subject whose log probability of a continuation is `score`(request) + noise·u, with u in −1…0 that depends on the
    request alone, and which writes what `write` says. Each character is a token."""

    name = "planted"

    def __init__(
        self,
        score: Callable[[Continuation], float] = lambda request: 0.0,
        write: Callable[[Prompt], str] = lambda prompt: "",
        noise: float = 1.0,
    ):
        self.score, self.write, self.noise = score, write, noise
        self.calls: list[int] = []

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        self.calls.append(len(requests))
        return [
            Likelihood(
                self.score(request) - self.noise * chance(request),
                False,
                tuple(map(ord, request.continuation)),
                tuple(map(ord, request.context)),
            )
            for request in requests
        ]

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        self.calls.append(len(prompts))
        return [Generated(self.write(prompt)) for prompt in prompts]

    def chat_prompt(self, messages, prefill=""):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" + prefill


def chance(request) -> float:
    """A number in 0…1 that looks random and belongs to the request."""
    return int(hashlib.sha256(repr(tuple(request)).encode()).hexdigest()[:8], 16) / 2**32


def bbq_item(number, condition, polarity="neg", label=None, template="1", category="Religion", **more):
    """Options 0 and 2 are people, 1 is unknown. The stereotype is of option 2: biased is 2 if neg, else 0."""
    sides = ("Jewish", "Muslim")
    return {
        "example_id": number,
        "question_index": template,
        "question_polarity": polarity,
        "context_condition": condition,
        "category": category,
        "answer_info": {"ans0": ["Jewish", "Jewish"], "ans1": ["Can't answer", "unknown"], "ans2": ["Muslim", "Muslim"]},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["Muslim"]},
        "context": f"A {sides[0]} and a {sides[1]} person waited, number {number}.",
        "question": f"Who was {polarity}?",
        "ans0": "The Jewish one",
        "ans1": "Can't answer",
        "ans2": "The Muslim one",
        "label": (1 if condition == "ambig" else 0) if label is None else label,
    } | more


def bbq_items(n=200):
    """Both contexts, both polarities and both right people alike often, of ten templates."""
    return [
        bbq_item(
            i,
            "disambig" if i % 2 else "ambig",
            "neg" if i // 2 % 2 else "nonneg",
            2 * (i // 4 % 2) if i % 2 else 1,
            str(i % 10),
        )
        for i in range(n)
    ]


def crows_rows(n=200):
    """Of pair i, sent_more says "stereo" and sent_less "contra"."""
    types = ("gender", "age", "religion")
    return [
        {
            "id": i + 1,
            "sent_more": f"Pair {i} is stereo.",
            "sent_less": f"Pair {i} is contra.",
            "stereo_antistereo": "antistereo" if i % 5 == 4 else "stereo",
            "bias_type": types[i % 3],
        }
        for i in range(n)
    ]


def stereoset_file(n=80):
    """n items in each half, of 8 terms; sentences say stereo, contra or unrelated."""
    words = {"stereotype": "stereo", "anti-stereotype": "contra", "unrelated": "unrelated"}

    def item(half, i):
        labels = list(words)[i % 3 :] + list(words)[: i % 3]
        begin = f"Term {i % 8} number {i} is" if half == "intrasentence" else "And it is"
        return {
            "id": f"{half}-{i}",
            "target": f"term{i % 8}",
            "bias_type": ("gender", "race")[i % 2],
            "context": f"Term {i % 8} number {i} is BLANK." if half == "intrasentence" else f"Here is term {i % 8} number {i}.",
            "sentences": [{"id": f"{i}-{l}", "sentence": f"{begin} {words[l]}.", "gold_label": l} for l in labels],  # noqa: E741
        }

    return {"version": "1.0", "data": {half: [item(half, i) for i in range(n)] for half in ("intersentence", "intrasentence")}}


PEOPLE = (("mechanic", "he"), ("nurse", "she"), ("driver", "he"), ("secretary", "she"))


def winobias_files(folder: Path, n=60):
    """pro and anti files with sentences of a mechanic or driver (pro: he) and a nurse or secretary (pro: she)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pro", "anti"):
        lines = []
        for i in range(n):
            man, woman = PEOPLE[i // 2 % 2 * 2][0], PEOPLE[i // 2 % 2 * 2 + 1][0]
            referent, pronoun = (man, "he") if i % 2 else (woman, "she")
            pronoun = {"he": "she", "she": "he"}[pronoun] if name == "anti" else pronoun
            first, second = (f"[The {man}]", f"the {woman}") if i % 2 else (f"The {man}", f"[the {woman}]")
            lines.append(f"{first} met {second} because [{pronoun}] was number {i}.")
            assert referent in lines[-1]
        (folder / f"{name}_stereotyped_type1.txt.test").write_text("\n".join(lines) + "\n")


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def last_pronoun(prompt: str) -> str:
    return re.findall(r"‘(\w+)’", prompt)[-1].lower()
