"""Shared code of tasks with free generation: keys of their files, prompts, generations and samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lm.evals.judges.endpoint import Chat
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.task import Generated, Outcome, Prompt, Subject, TaskSettings, cuts, message_fields
from lm.evals.tasks import documents, prompting
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.prompting import Context, Prompts

T = TypeVar("T")
KEYS = documents.KEYS | prompting.KEYS


class WritingTask(NamedTuple):
    """A task of free generation, which evaluate(task, subject) runs. chat: a judge model, or None."""

    name: str
    versions: dict[str, Any]
    values: dict[str, Any]
    documents: Documents
    prompts: Prompts
    seed: int
    chat: Chat | None
    evaluate: Callable[["WritingTask", Subject], Outcome]

    def run(self, subject: Subject) -> Outcome:
        return self.evaluate(self, subject)

    def contexts(self, subject: Subject, problems: Problems) -> list[tuple[TaskItem, Context]]:
        """Return the prompt of each item. An item that the templates cannot render is a problem."""
        return readable(self.documents.items, lambda item: self.prompts.contexts(item, subject)[0], problems)

    def answers(self, subject: Subject, problems: Problems, **sampling: Any) -> list[tuple[TaskItem, Context, Generated]]:
        """Return each item with its prompt and answer; those without an answer are problems."""
        asked, values = self.contexts(subject, problems), self.values
        requests = [Prompt(c.text, tuple(values["until"]), values["max_new_tokens"], **sampling) for _, c in asked]
        answers = generated(subject, requests, [item.id for item, _ in asked], problems)
        return [(item, c, answer) for (item, c), answer in zip(asked, answers, strict=True) if answer is not None]

    def sample(self, item: TaskItem, context: Context, answer: Generated) -> dict[str, Any]:
        """Return the fields that the sample of every answer has."""
        fields: dict[str, Any] = {"task": self.name, "doc_id": item.id, "split": self.versions["split"], "prompt": context.text}
        fields |= message_fields(context.messages)
        if answer.tokens or answer.prompt_tokens:
            fields["tokens"] = [list(answer.prompt_tokens), list(answer.tokens)]
        return fields | {"generation": answer.text} | ({"flags": flags} if (flags := cuts([answer])) else {})


def open_writing(
    name: str,
    values: dict[str, Any],
    settings: TaskSettings,
    evaluate: Callable[[WritingTask, Subject], Outcome],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    chat: Chat | None = None,
    **versions: Any,
) -> WritingTask:
    """Return a task of free generation.

    Args: values: its settings; {abstain} in their description becomes the value of `abstain`. read: converts a document.
      versions: what distinguishes two runs beside the data and the settings.
    Raises: UserError for missing data or an invalid template.
    """
    if isinstance(values.get("description"), str) and "abstain" in values:
        values |= {"description": values["description"].replace("{abstain}", values["abstain"])}
    documents = load(name, values, settings, read)
    prompts = prompting.open_prompts(name, values, settings, documents)
    versions = versions_of(documents, values, settings) | versions
    return WritingTask(name, versions, values, documents, prompts, settings.seed, chat, evaluate)


def versions_of(documents: Documents, values: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """Return what distinguishes two runs of a task: its data, and the settings of its file and of the config."""
    kept = {key: value for key, value in values.items() if key not in ("about", "kind")}
    return documents.versions | {"num_fewshot": documents.num_fewshot, "chat": settings.chat, "settings": kept}


def load(
    name: str, values: Mapping[str, Any], settings: TaskSettings, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> Documents:
    """Return a task's documents, and its examples, converted by `read`. If it raises Malformed, the item is a problem."""
    loaded = documents.load(name, values, settings)
    problems = loaded.new_problems()
    converted = readable(
        loaded.items, lambda item: item._replace(doc=read(item.doc), shots=tuple(map(read, item.shots))), problems
    )
    items = [item for _, item in converted]
    return loaded._replace(items=items, problems=problems, columns=loaded.columns.union(*(item.doc for item in items)))


def column(doc: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path such as answer.aliases; None if the path does not exist."""
    value: Any = doc
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def texts(value: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    """Return a text, or a list of texts and numbers, as texts. Raises: Malformed, also if there is none and not `empty`."""
    parts = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise Malformed(f"{what!r} holds a {type(part).__name__}, not a text")
    kept = tuple(dict.fromkeys(str(part) for part in parts if str(part).strip()))
    if not kept and not empty:
        raise Malformed(f"no {what!r}")
    return kept


def asking(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose topic, prompt and reference are texts. Empty ones are left out; an empty reference is None."""
    found = {key: " ".join(texts(doc.get(key), key, empty=True)) for key in ("topic", "prompt", "reference")}
    others = {key: value for key, value in doc.items() if key not in found}
    return others | {key: text for key, text in found.items() if text} | {"reference": found["reference"] or None}


def readable(items: Iterable[TaskItem], read: Callable[[TaskItem], T], problems: Problems) -> list[tuple[TaskItem, T]]:
    """Return each item with read(item). An item for which that raises Malformed is a problem."""
    pairs = []
    for item in items:
        try:
            pairs.append((item, read(item)))
        except Malformed as why:
            problems.add("malformed_items", f"{item.id}: {why}")
    return pairs


def generated(
    subject: Subject, asked: Sequence[Prompt], ids: Sequence[int | str], problems: Problems
) -> list[Generated | None]:
    """Generate. A failed generation is None and a problem, not an empty answer."""
    answers: list[Generated | None] = []
    for id, answer in zip(ids, subject.generate(asked), strict=True):
        if answer.problem:
            problems.add("answers_missing", f"{id}: {answer.problem}")
        elif not answer.text.strip():
            problems.add("empty_answers", str(id))
        answers.append(None if answer.problem else answer)
    return answers
