"""A quiz of held-out examples, which evaluate.py asks this model and others: --config.tasks=WORKDIR/quiz.yaml.

A question is the first message of a conversation. Its choices are its answer and those to other questions, or both answers of
a pair.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.chat.examples import held_out_examples
from data.chat.messages import Conversation, Example, Messages, Pair
from lm.files.saving import write, write_lines
from lm.runs.workdir import steps_saved

QUIZ = "quiz.yaml"
MAX_CHOICES, MIN_QUESTIONS = 4, 2
TASK = """# Made by align.py from its held-out examples; `python evaluate.py --config.tasks=THIS_FILE` asks it.
kind: choice
data: quiz.jsonl
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [acc, acc_norm]
"""


class Question(NamedTuple):
    question: str
    right: str
    wrong: str | None = None


def write_quiz(config, workdir: Path, kind: str) -> None:
    """Write quiz.yaml and quiz.jsonl to the workdir, unless the held-out examples are too few or of another kind."""
    if kind not in ("conversation", "pair") or not config.data.valid_fraction or steps_saved(workdir):
        return  # the input of a resumed run may be gone
    questions = list(_questions(held_out_examples(config, kind)))
    answers = list(dict.fromkeys(question.right for question in questions))
    if len(questions) < MIN_QUESTIONS or len(answers) < MIN_QUESTIONS:
        return
    items = []
    for number, (question, right, wrong) in enumerate(questions):
        at = answers.index(right)
        others = [wrong] if wrong is not None else (answers[at + 1 :] + answers[:at])[: MAX_CHOICES - 1]
        place = number % (len(others) + 1)
        items.append({"question": question, "choices": [*others[:place], right, *others[place:]], "answer": place})
    write_lines(workdir / "quiz.jsonl", items)
    write(workdir / QUIZ, TASK)


def _questions(examples: Iterator[Example]) -> Iterator[Question]:
    for example in examples:
        if isinstance(example, Pair):
            texts = [_text(messages) for messages in (example.prompt, example.chosen, example.rejected)]
        elif isinstance(example, Conversation):
            messages = [message for message in example.messages if message["role"] != "system"]
            texts = [_text(messages[:1]), _text(messages[1:2], "assistant")]
        if all(texts):
            yield Question(*texts)


def _text(messages: Messages, role: str | None = None) -> str:
    """Return the text of the only message; "" if there are others, or if it has another role or media."""
    messages = [message for message in messages if message["role"] != "system"]
    if len(messages) != 1 or role not in (None, messages[0]["role"]) or not isinstance(messages[0]["content"], str):
        return ""
    return messages[0]["content"].strip()
