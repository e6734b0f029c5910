"""Small made rows of the benchmarks, in the forms that they are published in; and models to try tasks with."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.evals.task import Continuation, Generated, Likelihood, Prompt, Rolled

WORDS = "apple's river “quoted” naïve 3.5 the; a (long) $4 stone. Wind\tover 汉 don't 7 - to be: N , and".split(" ")


def say(seed, n=6):
    draw = random.Random(f"{seed}")
    return " ".join(draw.choice(WORDS) for _ in range(n))


def mmlu(i, split, subject="anatomy"):
    choices = [say(f"{split}{i}{c}", 2) for c in range(4)]
    return {"question": f" {say(f'{split}{i}')} ", "subject": subject, "choices": choices, "answer": i % 4}


def mmlu_pro(i, split, category="biology"):
    options = [say(f"{split}{i}{c}", 2) + " " for c in range(3 + i % 5)]
    answer = "ABC"[i % 3]
    thoughts = f"A: Let's think step by step. {say(i)} The answer is ({answer})."
    row = {"question": say(f"{split}{i}"), "options": options, "answer": answer, "answer_index": i % 3}
    return {"question_id": i, **row, "cot_content": thoughts, "category": category}


def hellaswag(i, split):
    endings = [f"{say(f'{split}{i}{c}', 4)} [step] goes  on." for c in range(4)]
    begin = {"activity_label": f"Doing {i}", "ctx_a": f"{say(i)} [title]", "ctx_b": "the man"}
    return {"ind": i, **begin, "ctx": "…", "endings": endings, "label": str(i % 4)}


def arc(i, split):
    n = 3 + i % 3
    labels = list("ABCDE" if i % 2 else "12345")[:n]
    choices = {"text": [say(f"{split}{i}{c}", 2) for c in range(n)], "label": labels}
    return {"id": f"{split}_{i}", "question": say(f"{split}{i}") + "?", "choices": choices, "answerKey": labels[i % n]}


def openbookqa(i, split):
    row = arc(i, split)
    labels = list("ABCD")
    choices = {"text": [say(f"{split}{i}{c}", 2) for c in range(4)], "label": labels}
    return {"id": row["id"], "question_stem": row["question"], "choices": choices, "answerKey": labels[i % 4]}


def piqa(i, split):
    return {"goal": say(f"{split}{i}"), "sol1": say(f"{split}{i}s", 3), "sol2": say(f"{split}{i}t", 3), "label": i % 2}


def winogrande(i, split):
    sentence = f"{say(f'{split}{i}', 3)} because _ was {i} long."
    return {"sentence": sentence, "option1": "the trophy", "option2": f"the suitcase {i}", "answer": str(1 + i % 2)}


def boolq(i, split):
    return {"question": say(f"{split}{i}"), "passage": say(f"{split}{i}p", 12), "idx": i, "label": i % 2}


def lambada(i, split):
    return {"text": f"{say(f'{split}{i}', 9)} end{i}"}


def truthfulqa(i, split):
    choices = [say(f"{split}{i}{c}", 3) for c in range(4)]
    targets = {"mc1_targets": {"choices": choices, "labels": [1, 0, 0, 0]}}
    return {"question": say(f"{split}{i}") + "?", **targets, "mc2_targets": {"choices": choices, "labels": [1, 1, 0, 0]}}


def truthfulqa_answers(i, split):
    right, wrong = [f"It is stone {i} of the river", "Wind."], [f"It is apple number {i} and to be, no"]
    return {"question": say(f"{split}{i}") + "? ", "correct_answers": right, "incorrect_answers": wrong}


def gsm8k(i, split):
    return {"question": say(f"{split}{i}") + "?", "answer": f"{say(f'{split}{i}a')} <<1+{i}={i + 1}>>.\n#### {i + 1}"}


def math(i, split):
    answer = ["\\frac12", "3", "\\sqrt{5}", "x^2", "7\\%"][i % 5]
    problem = {"problem": say(f"{split}{i}") + " $x$", "level": "Level 1", "type": "Algebra"}
    return problem | {"solution": f"{say(i)} so it is $\\boxed{{{answer}}}$."}


def humaneval(i, split):
    prompt = f'def add_{i}(a, b):\n    """Adds {i} too."""\n'
    test = f"def check(candidate):\n    assert candidate(2, 3) == {5 + i}\n    assert candidate(-1, 1) == {i}\n"
    solution = f"    return a + b + {i}\n"
    return {"task_id": f"Made/{i}", "prompt": prompt, "canonical_solution": solution, "test": test, "entry_point": f"add_{i}"}


def bbh(i, split):
    return {"input": say(f"{split}{i}"), "target": ["True", "False", "(A)", "(B)", "13"][i % 5]}


def ifeval(i, split):
    kwargs = [{"num_words": 3, "relation": "at least", "language": None}, {"num_words": None}]
    ids = ["length_constraints:number_words", "punctuation:no_comma"]
    return {"key": 1000 + i, "prompt": f"Say {i} things. {say(i)}", "instruction_id_list": ids, "kwargs": kwargs}


def wikitext(i, split):
    marks = 'The cat @-@ like thing , ( see 3 @.@ 5 ) of 1 @,@ 000 . " It " \'s here ; no ! N ° = = . , x'
    return {"page": f" = Title {i} = \n \n {marks} {say(i)} \n "}


def choices(i, split):
    return {
        "query": f"Question: {say(f'{split}{i}')} ",
        "choices": [say(f"{i}{c}", 2) for c in range(2 + i % 3)],
        "gold": i % 2,
    }


def continuation(i, split):
    return {"context": f"{say(f'{split}{i}')} is ", "continuation": f"answer {i}", "category": ["art", "sport"][i % 2]}


def schema(i, split):
    contexts = [f"The cup {i} is big because the cup", f"The cup {i} is big because the box"]
    return {"context_options": contexts, "continuation": f"holds {i}", "gold": i % 2}


def put(folder: Path, row: Callable[..., dict], sizes: dict[str, int], **more) -> Path:
    """folder/SPLIT.jsonl of so many rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in sizes.items():
        lines = (json.dumps(row(i, split, **more), ensure_ascii=False) + "\n" for i in range(n))
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


class Recorder:
    """A model that remembers what it was asked, and answers as it is told to."""

    name = "recorder"

    def __init__(self, logp: Callable[[Continuation], float] = lambda request: -1.0, answer: Callable[[str], str] = str):
        self.logp, self.answer = logp, answer
        self.asked: list[Continuation] = []
        self.prompts: list[Prompt] = []
        self.texts: list[str] = []
        self.calls = 0

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        self.asked += requests
        self.calls += 1
        values = [self.logp(request) for request in requests]
        return [
            Likelihood(value, value is not None and value > -0.5, tuple(range(len(request.continuation.split()))), (0,))
            for value, request in zip(values, requests)
        ]

    def rolled(self, texts: Sequence[str]) -> list[Rolled]:
        self.texts += texts
        self.calls += 1
        return [Rolled(tuple(self.logp(Continuation("", c)) for c in text), tuple(map(ord, text))) for text in texts]

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        self.prompts += prompts
        self.calls += 1
        return [Generated(self.answer(prompt.text)) for prompt in prompts]

    def chat_prompt(self, messages, prefill: str = "") -> str:
        return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>" + prefill


def guessing(seed: int) -> Recorder:
    """Random likelihoods."""
    draw = random.Random(seed)
    return Recorder(logp=lambda request: -draw.expovariate(1.0))
