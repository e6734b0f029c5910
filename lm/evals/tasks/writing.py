"""Shared code of tasks with free generation: keys of their files, prompts, generations and samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm.evals.stats.joining import Malformed, Problems
from lm.evals.task import Generated, Prompt, Subject, TaskSettings, cuts
from lm.evals.tasks import documents, prompting
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.prompting import Context, Prompts

KEYS = documents.KEYS | prompting.KEYS


def with_abstention(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings with "{abstain}" in their description replaced by the value of `abstain`."""
    if not isinstance(values.get("description"), str):
        return values
    return values | {"description": values["description"].replace("{abstain}", values["abstain"])}


def load(
    name: str, values: Mapping[str, Any], settings: TaskSettings, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> Documents:
    """Return a task's documents, and its examples, converted by `read`. If it raises Malformed, the item is a problem."""
    found = documents.load(name, values, settings)
    problems, items = found.new_problems(), []
    for item in found.items:
        try:
            items.append(item._replace(doc=read(item.doc), shots=tuple(map(read, item.shots))))
        except Malformed as why:
            problems.add("malformed_items", f"{item.id}: {why}")
    columns = found.columns.union(*(item.doc for item in items))
    return found._replace(items=items, problems=problems, columns=columns)


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


def contexts(
    prompts: Prompts, items: Iterable[TaskItem], subject: Subject, problems: Problems
) -> list[tuple[TaskItem, Context]]:
    """Return the prompt of each item. An item that the templates cannot render is a problem."""
    found = []
    for item in items:
        try:
            found.append((item, prompts.contexts(item, subject)[0]))
        except Malformed as why:
            problems.add("malformed_items", f"{item.id}: {why}")
    return found


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


def sample(task: str, split: str, item: TaskItem, context: Context, answer: Generated) -> dict[str, Any]:
    """Return the fields that the sample of every generated answer has."""
    fields: dict[str, Any] = {"task": task, "doc_id": item.id, "split": split, "prompt": context.text}
    if context.messages is not None:
        fields["messages"] = [dict(message) for message in context.messages]
    if answer.tokens or answer.prompt_tokens:
        fields["tokens"] = [list(answer.prompt_tokens), list(answer.tokens)]
    return fields | {"generation": answer.text} | ({"flags": flags} if (flags := cuts([answer])) else {})


def versions(documents: Documents, values: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """Return what distinguishes two runs of a task: its data, and the settings of its file and of the config."""
    kept = {key: value for key, value in values.items() if key not in ("about", "kind")}
    return {**documents.versions, "num_fewshot": documents.num_fewshot, "chat": settings.chat, "settings": kept}
