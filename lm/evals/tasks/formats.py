"""Convert rows from a benchmark's published formats to the format that its task file's templates read.

Each function takes a row and returns the missing keys; a row in the Hugging Face hub's format stays as it is. They raise
(LookupError, TypeError, ValueError, Malformed) for a row of an unknown format.
"""

import re
from typing import Any

from lm.evals.stats.joining import Malformed, present, text, whole
from lm.evals.tasks.answers import boxed

LETTERS = "ABCD"


def mmlu(row: dict) -> dict[str, Any]:
    """Return choices (four texts) and answer (0 to 3), from columns A to D and a letter, or as they are."""
    choices = row["choices"] if row.get("choices") is not None else [text(row, letter) for letter in LETTERS]
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        raise Malformed("'choices' are not four texts")
    text(row, "question")
    answer = whole(present(row, "answer"))
    if isinstance(answer, str):
        answer = LETTERS.find(answer.strip()) if len(answer.strip()) == 1 else -1
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer <= 3:
        raise Malformed(f"'answer' is {row['answer']!r}, none of A, B, C, D")
    return {"choices": choices, "answer": answer}


def hellaswag(row: dict) -> dict[str, Any]:
    """Return query and choices, without WikiHow's marks in brackets."""

    def tidy(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    begin = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"query": tidy(begin), "choices": [tidy(ending) for ending in row["endings"]]}


def nested_question(row: dict) -> dict[str, Any]:
    """Convert AI2's ARC, OpenBookQA, CommonsenseQA: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}."""
    if not isinstance(row.get("question"), dict):
        return {}
    stem, choices = row["question"]["stem"], row["question"]["choices"]
    by_key = {key: [choice[key] for choice in choices] for key in ("text", "label")}
    return {"question": stem, "question_stem": stem, "choices": by_key}


def winogrande(row: dict) -> dict[str, Any]:
    """Return contexts: the sentence up to the blank, with each option; after: the rest of the sentence; right: 0 or 1."""
    before, blank, after = row["sentence"].partition("_")
    if not blank:
        raise Malformed("'sentence' has no _")
    return {
        "contexts": [before + row["option1"], before + row["option2"]],
        "after": after.strip(),
        "right": {"1": 0, "2": 1}[str(row["answer"])],
    }


def boolq(row: dict) -> dict[str, Any]:
    """Return label: 0 no, 1 yes."""
    label = row["label"] if row.get("label") is not None else present(row, "answer")
    return {"label": {"false": 0, "true": 1, "0": 0, "1": 1}[str(whole(label)).lower()]}


def truthfulqa_choices(row: dict) -> dict[str, Any]:
    """Return mc1_targets, mc2_targets as {"choices", "labels"}, from the authors' mc_task.json {choice: label} or their CSV."""
    if "Best Answer" in row:
        right, wrong = (_listed(row[f"{kind} Answers"]) for kind in ("Correct", "Incorrect"))
        best = row["Best Answer"].strip()
        targets = {"mc1": dict.fromkeys(wrong, 0) | {best: 1}, "mc2": dict.fromkeys(right, 1) | dict.fromkeys(wrong, 0)}
        targets["mc1"] = {best: 1} | targets["mc1"]
        row = {"question": row["Question"], **{f"{kind}_targets": some for kind, some in targets.items()}}
    converted = {"question": text(row, "question")}
    for key in ("mc1_targets", "mc2_targets"):
        targets = row[key]
        if "labels" not in targets:
            targets = {"choices": list(targets), "labels": list(targets.values())}
        converted[key] = targets
    return converted


def truthfulqa_answers(row: dict) -> dict[str, Any]:
    """Return correct_answers (with "I have no comment.") and incorrect_answers, each with a full stop."""
    if "Best Answer" in row:
        right, wrong = (_listed(row[f"{kind} Answers"]) for kind in ("Correct", "Incorrect"))
        row = {"question": row["Question"], "correct_answers": right, "incorrect_answers": wrong}
    right, wrong = (
        [answer if answer.endswith(".") else answer + "." for answer in map(str.strip, row[key]) if answer]
        for key in ("correct_answers", "incorrect_answers")
    )
    if not right or not wrong:
        raise Malformed("no correct or no incorrect answers")
    right += [] if "I have no comment." in right else ["I have no comment."]
    return {"question": row["question"].strip(), "correct_answers": right, "incorrect_answers": wrong}


def math(row: dict) -> dict[str, Any]:
    """Return answer: the solution's boxed text; subject: from the row, its type or its file."""
    answer = boxed(text(row, "solution"))
    if answer is None:
        raise Malformed("'solution' has no \\boxed{…}")
    named = row.get("type") or row.get("subject") or "math"
    return {"answer": answer, "subject": "_".join(re.findall(r"[a-z]+", named.lower().replace("&", "and")))}


def gsm8k(row: dict) -> dict[str, Any]:
    """Check that the answer ends in #### and a number. Add no keys."""
    if not re.search(r"#### -?[$0-9.,]*[0-9]", text(row, "answer")):
        raise Malformed("'answer' has no number after '#### '")
    return {}


def wikitext(row: dict) -> dict[str, Any]:
    """Return tidy: the page without tokenization marks, as lm-evaluation-harness cleans it."""
    tidy = text(row, "page")
    for pattern, meant in _WIKITEXT:
        tidy = pattern.sub(meant, tidy)
    return {"tidy": tidy}


def _listed(answers: str) -> list[str]:
    return [answer.strip() for answer in answers.split(";") if answer.strip()]


# Applied in this order.
_WIKITEXT = [
    (re.compile(pattern), meant)
    for pattern, meant in (
        ("s '", "s'"),
        (r"/' [0-9]/", r"/'[0-9]/"),
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (r" @\.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (r" \. ", ". "),
        (" ! ", "! "),
        (r" \? ", "? "),
        (" , ", ", "),
        (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
        (r"{\s*([^}]*?)\s*}", r"{\1}"),
        (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"),
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    )
]
