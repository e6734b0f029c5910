"""Tasks in which a model writes freely: the keys of their files, and what it wrote."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.outcome import TaskSettings
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.subject import Generated, Prompt, Subject
from lm.evals.tasks import documents, prompting
from lm.evals.tasks.documents import Documents, Item
from lm.evals.tasks.prompting import Context, Prompts
from lm.evals.tasks.spec import check


def settled(
    name: str,
    spec: Mapping[str, Any],
    settings: TaskSettings,
    defaults: Mapping[str, Any],
    needed: Sequence[str] = ("doc_to_text",),
) -> dict[str, Any]:
    """A task file's values over `defaults`, and over both those that the config has for its kind, settings.options[kind].

    defaults: of the keys of this kind of task a value of the type that is wanted. Task files also have those of documents and
    of prompts; {abstain} in a description is what `abstain` says. Raises: UserError for an unknown key, for a value of a wrong
    type, and for a key of `needed` that is missing.
    """
    kind = spec.get("kind", name)
    own = {key: (int, float) if isinstance(value, float) else type(value) for key, value in defaults.items()}
    given = dict(settings.options.get(kind) or {})
    check(name, spec, documents.KEYS | prompting.KEYS | own, needed)
    check(f"options.{kind}", given, own)
    told = {key: value for values in (spec, given) for key, value in values.items() if value is not None}
    for key, default in defaults.items():
        if isinstance(default, list) and not all(isinstance(part, str) for part in told.get(key, ())):
            raise UserError(f"task {name}: {key}: {told[key]!r} must be a list of texts")
    if "abstain" in defaults and isinstance(told.get("description"), str):
        told["description"] = told["description"].replace("{abstain}", told.get("abstain", defaults["abstain"]))
    return {**defaults, **told}


def opened(
    name: str, values: Mapping[str, Any], settings: TaskSettings, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> Documents:
    """The documents of a task as `read` reads them, examples too; where it raises Malformed, that is a problem of the item."""
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
    """The value of a dotted path such as answer.aliases; None where it leads nowhere."""
    value: Any = doc
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def texts(value: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    """A text or a list of texts and numbers, as texts. Raises: Malformed, also for none unless `empty`."""
    parts = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | float):
            raise Malformed(f"{what!r} holds a {type(part).__name__}, not a text")
    kept = tuple(dict.fromkeys(str(part) for part in parts if str(part).strip()))
    if not kept and not empty:
        raise Malformed(f"no {what!r}")
    return kept


def asking(doc: Mapping[str, Any]) -> dict[str, Any]:
    """A document whose topic and prompt, if there are any, are texts that say something, and whose reference is one or None."""
    told = {key: " ".join(texts(doc.get(key), key, empty=True)) for key in ("topic", "prompt", "reference")}
    kept = {key: value for key, value in doc.items() if key not in told} | {key: said for key, said in told.items() if said}
    return kept | {"reference": told["reference"] or None}


def contexts(prompts: Prompts, items: Iterable[Item], subject: Subject, problems: Problems) -> list[tuple[Item, Context]]:
    """The prompt of each item that the templates can put into words."""
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
    """What the model writes, None where it failed to, which is a problem and no answer."""
    answers: list[Generated | None] = []
    for id, answer in zip(ids, subject.generate(asked), strict=True):
        if answer.problem:
            problems.add("answers_missing", f"{id}: {answer.problem}")
        elif not answer.text.strip():
            problems.add("empty_answers", str(id))
        answers.append(None if answer.problem else answer)
    return answers


def sample(task: str, split: str, item: Item, context: Context, answer: Generated) -> dict[str, Any]:
    """What the sample of every written answer has."""
    told: dict[str, Any] = {"task": task, "doc_id": item.id, "split": split, "prompt": context.text}
    if context.messages is not None:
        told["messages"] = [dict(message) for message in context.messages]
    if answer.tokens or answer.prompt_tokens:
        told["tokens"] = [list(answer.prompt_tokens), list(answer.tokens)]
    return told | {"generation": answer.text}


def versions(documents: Documents, values: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """What tells two runs of a task apart: its data, and all that its file and the config say of it."""
    kept = {key: value for key, value in values.items() if key not in ("about", "kind")}
    return {**documents.versions, "num_fewshot": documents.num_fewshot, "chat": settings.chat, "settings": kept}
