"""Generated answers: the model writes, filters extract the answer, and metrics compare it with the targets.

exact_match  the answer of a filter pipeline equals one of the targets, after lm-evaluation-harness's normalisations of both
             (ignore_case, ignore_punctuation, ignore_numbers, regexes_to_ignore); `equal: math` compares by the rules of
             MATH instead. With more than one pipeline its name is exact_match_PIPELINE
judge        a grade by a model, if settings.judge names one (openai:URL); unknown grades are counted and not scored
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data.media.parts import noted
from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.judges.endpoint import Chat, endpoint
from lm.evals.judges.verdict import ask
from lm.evals.stats.joining import Problems
from lm.evals.task import Generated, Outcome, Prompt, Subject, TaskSettings
from lm.evals.tasks import file_task, prompting
from lm.evals.tasks.answers import INVALID, exact_match, open_pipelines
from lm.evals.tasks.documents import TaskItem
from lm.evals.tasks.file_task import FileTask, metrics_of, open_file_task, readable
from lm.evals.tasks.prompting import Context
from lm.evals.tasks.settings import check, resolved

KEYS = (
    file_task.KEYS
    | prompting.MEDIA_KEYS
    | {"metric_list": list, "areas": dict, "generation_kwargs": dict, "filter_list": list, "repeats": int, "judge_model": str}
)
GENERATION_KEYS = {
    "until": (list, str),
    "max_gen_toks": int,
    "temperature": (int, float),
    "do_sample": bool,
    "top_p": (int, float),
}
OPTIONS = {
    "exact_match": {
        "ignore_case": bool,
        "ignore_punctuation": bool,
        "ignore_numbers": bool,
        "regexes_to_ignore": list,
        "equal": str,
    },
    "judge": {"question": str, "right": str, "wrong": str},
}


class Answered(NamedTuple):
    """An item with its prompt, what was read of it (here its targets), and the model's answers."""

    item: TaskItem
    context: Context
    read: Any
    answers: list[Generated]


class Generation(NamedTuple):
    """How generated answers are scored. metrics: {metric: its options}. pipelines: filters by name. judge: a chat, or None."""

    metrics: Mapping[str, dict[str, Any]]
    pipelines: Mapping[str, Callable[[Sequence[str]], str]]
    judge: Chat | None

    def evaluate(self, task: FileTask, subject: Subject) -> Outcome:
        problems = task.documents.new_problems()

        def targets_of(item: TaskItem) -> list[str]:
            with prompting.reading():
                target = task.prompts.form.answer(item.doc)
                return [str(part) for part in target] if isinstance(target, list) else [str(target)]

        answered = answers_of(task, subject, problems, targets_of, task.values.get("repeats") or 1)
        samples = [self.sample(task, question, problems) for question in answered]
        if self.judge:
            self.grade(task, [pair for pair in zip(answered, samples) if "answer" in pair[1]], problems)
        scored = [sample for sample in samples if "answer" in sample]
        return Outcome(task.summary(scored, self.names(), problems), samples)

    def names(self) -> list[str]:
        """Return the names of the metrics in results."""
        names = [self._name(pipeline) for pipeline in self.pipelines] if "exact_match" in self.metrics else []
        return names + (["judge"] if self.judge else [])

    def sample(self, task: FileTask, answered: Answered, problems: Problems) -> dict[str, Any]:
        """Return an item's sample; without a key "answer" if the model gave none."""
        item, context, targets, answers = answered
        # Notes stand in the places of media.
        messages = context.messages and [
            {"role": m["role"], "content": noted(m["content"], m)} if "media" in m else m for m in context.messages
        ]
        sample = {
            **task.about(item),
            "prompt": context.text,
            "target": targets if len(targets) > 1 else targets[0],
            "reference": targets[0],
            "generation": answers[0].text,
            "metrics": dict.fromkeys(self.names()),
            "failed": False,
        } | outcomes.message_fields(messages)
        if len(answers) > 1:
            sample["generations"] = [answer.text for answer in answers]
        if lost := next((answer.problem for answer in answers if answer.problem), ""):
            outcomes.flag(sample, problems, "no_generation", lost)
            return sample
        outcomes.flag_cuts(sample, problems, answers)
        texts = [answer.text for answer in answers]
        by_pipeline = {name: run(texts) for name, run in self.pipelines.items()}
        if all(answer == INVALID for answer in by_pipeline.values()):
            outcomes.flag(sample, problems, "generations_without_answer", repr(answers[0].text))
        matches = {}
        if (options := self.metrics.get("exact_match")) is not None:
            matches = {self._name(name): exact_match(answer, targets, options) for name, answer in by_pipeline.items()}
        answer = next((answer for answer in by_pipeline.values() if answer != INVALID), INVALID)
        results = {"metrics": sample["metrics"] | matches, "failed": bool(matches) and not any(matches.values())}
        return sample | {"answer": answer, "answers": by_pipeline} | results

    def grade(self, task: FileTask, pairs: Sequence[tuple[Answered, dict]], problems: Problems) -> None:
        """Write the judge's grades into the samples."""
        options, cases = self.metrics["judge"], []

        def read(key: str, item: TaskItem) -> Any:
            template = options.get(key)
            return prompting.Form("", None, template, task.prompts.form.columns).answer(item.doc) if template else None

        def listed(answers: Any) -> str:
            return "\n".join(f"- {answer}" for answer in (answers if isinstance(answers, list) else [answers]))

        for (item, context, targets, _), sample in pairs:
            question, right, wrong = (read(key, item) for key in ("question", "right", "wrong"))
            question = question if isinstance(question, str) and question else context.text
            texts = {"question": question, "right": listed(right or targets)} | ({"wrong": listed(wrong)} if wrong else {})
            cases.append(texts | {"answer": sample["answer"]})
        note = ", what is known to be wrong" if options.get("wrong") else ""
        for (_, sample), grade in zip(pairs, ask(self.judge, "grade", cases, wrong_note=note), strict=True):
            if grade.label == "unknown":
                outcomes.flag(sample, problems, "judge_unknown", grade.reason)
            sample["metrics"]["judge"] = None if grade.label == "unknown" else float(grade.label == "right")
            sample |= {"grade": grade.label, "reason": grade.reason}
            sample["failed"] = grade.label == "wrong" if grade.label != "unknown" else sample["failed"]

    def _name(self, pipeline: str) -> str:
        return "exact_match" if len(self.pipelines) == 1 or pipeline == "none" else f"exact_match_{pipeline}"


def build(name: str, spec: dict, settings: TaskSettings) -> FileTask:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    values = resolved(name, spec, settings, KEYS, needed=("doc_to_text", "doc_to_target", "metric_list"))
    metrics = metrics_of(name, values, OPTIONS)
    if (equal := metrics.get("exact_match", {}).get("equal")) not in (None, "math"):
        raise UserError(f"task {name}: metric_list: exact_match: equal: {equal!r} is not math")
    chat = None
    if "judge" in metrics and settings.judge.startswith("openai:"):
        chat = endpoint(settings.judge.removeprefix("openai:"), values.get("judge_model") or "")
    elif "exact_match" not in metrics:
        raise UserError(f"task {name}: a model grades its answers; set judge=openai:URL")
    if any(values.get(key) for key in prompting.MEDIA_KEYS) and not settings.chat:
        raise UserError(f"task {name}: its images and sound stand in messages; set --config.chat_template=own")
    pipelines = open_pipelines(name, values.get("filter_list"))
    sampling_of(name, values)  # raises UserError for invalid keys
    task = open_file_task(name, values, settings, Generation(metrics, pipelines, chat).evaluate)
    return task._replace(versions=task.versions | ({"judge": settings.judge} if chat else {}))


def sampling_of(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation_kwargs as lm-evaluation-harness reads them. Defaults: greedy, stop at the delimiter of examples, and at
    most 256 tokens."""
    kwargs = spec.get("generation_kwargs") or {}
    check(f"task {name}: generation_kwargs", kwargs, GENERATION_KEYS)
    until = kwargs.get("until")
    if until is None:
        until = spec["fewshot_delimiter"] if spec.get("fewshot_delimiter") is not None else "\n\n"
    temperature = float(kwargs.get("temperature", 1.0 if kwargs.get("do_sample") else 0.0))
    return {
        "stops": tuple([until] if isinstance(until, str) else until),
        "max_new_tokens": kwargs.get("max_gen_toks", 256),
        "temperature": temperature if kwargs.get("do_sample", True) else 0.0,
        "top_p": float(kwargs.get("top_p", 1.0)),
    }


def answers_of(
    task: FileTask, subject: Subject, problems: Problems, read: Callable[[TaskItem], Any], repeats: int = 1
) -> list[Answered]:
    """Return each item with `repeats` independent answers by generation_kwargs. One that cannot be read is a problem."""
    prompted = readable(task.documents.items, lambda item: (read(item), task.prompts.contexts(item, subject)[0]), problems)
    sampling = sampling_of(task.name, task.values)
    prompts = [
        Prompt(context.text, **sampling, seed=task.seed + draw, media=context.media)
        for _, (_, context) in prompted
        for draw in range(repeats)
    ]
    answers = iter(subject.generate(prompts))
    return [Answered(item, context, value, [next(answers) for _ in range(repeats)]) for item, (value, context) in prompted]
