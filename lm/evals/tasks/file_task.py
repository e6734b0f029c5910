"""A task whose items, prompts and settings come from its file: the record of it, its samples, and its metrics over groups."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.judges.endpoint import Chat
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.task import Generated, Outcome, Prompt, Subject, TaskSettings
from lm.evals.tasks import documents as documents_of
from lm.evals.tasks import items, prompting
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.prompting import Context, Prompts
from lm.evals.tasks.settings import check

T = TypeVar("T")
KEYS = documents_of.KEYS | prompting.KEYS
PLURALS = {"category": "categories"}


class FileTask(NamedTuple):
    """A task, which evaluate(task, subject) runs. values: its settings. chat: a judge model, or None."""

    name: str
    values: dict[str, Any]
    documents: Documents
    prompts: Prompts
    versions: dict[str, Any]
    seed: int
    evaluate: Callable[["FileTask", Subject], Outcome]
    chat: Chat | None = None

    def run(self, subject: Subject) -> Outcome:
        return self.evaluate(self, subject)

    def contexts(self, subject: Subject, problems: Problems) -> list[tuple[TaskItem, Context]]:
        """Return the prompt of each item. An item that the templates cannot render is a problem."""
        return readable(self.documents.items, lambda item: self.prompts.contexts(item, subject)[0], problems)

    def answers(self, subject: Subject, problems: Problems, **sampling: Any) -> list[tuple[TaskItem, Context, Generated]]:
        """Return each item with its prompt and answer, by `until` and `max_new_tokens`. Those without one are problems."""
        prompted, values = self.contexts(subject, problems), self.values
        requests = [Prompt(c.text, tuple(values["until"]), values["max_new_tokens"], **sampling) for _, c in prompted]
        answers = generated(subject, requests, [item.id for item, _ in prompted], problems)
        return [(item, c, answer) for (item, c), answer in zip(prompted, answers, strict=True) if answer is not None]

    def about(self, item: TaskItem) -> dict[str, Any]:
        """Return the first fields of every sample: its task and item, and its group, also under the key that defines groups."""
        by = self.values.get("group_by")
        group = {"group": item.group, by: item.group} if by else {}
        return {"task": self.name, "doc_id": item.id, **group, "split": self.versions["split"]}

    def sample(self, item: TaskItem, context: Context, answer: Generated) -> dict[str, Any]:
        """Return the fields that the sample of every written answer has."""
        fields = self.about(item) | {"prompt": context.text} | outcomes.message_fields(context.messages)
        if answer.tokens or answer.prompt_tokens:
            fields["tokens"] = [list(answer.prompt_tokens), list(answer.tokens)]
        return fields | {"generation": answer.text} | ({"flags": flags} if (flags := outcomes.cuts([answer])) else {})

    def summary(self, samples: Sequence[dict], metrics: Sequence[str], problems: Problems) -> dict[str, Any]:
        """Return means over the samples.

        With `group_by`, add the results of each group under its plural, and METRIC_macro, the mean over groups, with standard
        error √Σ stderr² / groups. With `areas` {area: groups}, add the results of each area."""
        counts = {"n": len(samples), "num_fewshot": self.documents.num_fewshot}
        results = counts | outcomes.means(samples, metrics) | {"problems": problems.kinds}
        by = self.values.get("group_by")
        if not by:
            return results
        groups = {group: [s for s in samples if s["group"] == group] for group in sorted({s["group"] for s in samples})}
        parts = {group: outcomes.means(some, metrics) for group, some in groups.items()}
        for metric in metrics if len(parts) > 1 else ():
            values, errors = ([part[f"{metric}{end}"] for part in parts.values()] for end in ("", "_stderr"))
            if None not in values:
                error = None if None in errors else math.sqrt(sum(error * error for error in errors)) / len(errors)
                results |= {f"{metric}_macro": sum(values) / len(values), f"{metric}_macro_stderr": error}
        results[plural(by)] = parts
        areas = self.values.get("areas") or {}
        of_area = {area: [s for group in names for s in groups.get(group, ())] for area, names in areas.items()}
        if any(of_area.values()):
            results["areas"] = {area: outcomes.means(some, metrics) for area, some in of_area.items() if some}
        return results


def open_file_task(
    name: str,
    values: dict[str, Any],
    settings: TaskSettings,
    evaluate: Callable[[FileTask, Subject], Outcome],
    *,
    read: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    endings: Sequence[str] = items.ENDINGS,
    chat: Chat | None = None,
) -> FileTask:
    """Return a task with its documents and prompts.

    Args: values: its settings; {abstain} in their description becomes the value of `abstain`. read: converts a document; raises
      Malformed. endings: of the files' names.
    Raises: UserError for missing data or an invalid template.
    """
    if isinstance(values.get("description"), str) and "abstain" in values:
        values |= {"description": values["description"].replace("{abstain}", values["abstain"])}
    documents = documents_of.load(name, values, settings, endings)
    if read is not None:
        documents = converted(documents, read)
    prompts = prompting.open_prompts(name, values, settings, documents)
    return FileTask(name, values, documents, prompts, versions_of(values, settings, documents), settings.seed, evaluate, chat)


def converted(documents: Documents, read: Callable[[dict[str, Any]], dict[str, Any]]) -> Documents:
    """Return documents and their examples, converted by `read`. If it raises Malformed, the item is a problem."""
    problems = documents.new_problems()

    def convert(item: TaskItem) -> TaskItem:
        return item._replace(doc=read(item.doc), shots=tuple(map(read, item.shots)))

    items = [item for _, item in readable(documents.items, convert, problems)]
    return documents._replace(items=items, problems=problems, columns=documents.columns.union(*(item.doc for item in items)))


def versions_of(values: Mapping[str, Any], settings: TaskSettings, documents: Documents) -> dict[str, Any]:
    """Return the versions of the documents, and a digest of everything that the prompts depend on."""
    made_by = [dict(values), settings.chat, settings.system, settings.fewshot_as_multiturn, settings.seed]
    text = json.dumps([*made_by, documents.num_fewshot], sort_keys=True, ensure_ascii=True, default=str)
    return documents.versions | {"prompts": "sha256:" + hashlib.sha256(text.encode()).hexdigest()}


def metrics_of(name: str, values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metric_list as {metric: options}. An entry is a name, or {metric: name, option: value}.

    known: {metric: {option: type}}. Raises UserError."""
    metrics = {}
    for entry in values.get("metric_list") or []:
        options = {"metric": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
        metric = options.pop("metric", None)
        if metric not in known:
            raise UserError(f"task {name}: metric_list: {entry!r} is none of {', '.join(known)}")
        check(f"task {name}: metric_list: {metric}", options, known[metric])
        metrics[metric] = options
    if not metrics:
        raise UserError(f"task {name}: metric_list is empty")
    return metrics


def readable(items: Iterable[TaskItem], read: Callable[[TaskItem], T], problems: Problems) -> list[tuple[TaskItem, T]]:
    """Return each item with read(item). If that raises Malformed, the item is a problem, of the kind that the error names."""
    pairs = []
    for item in items:
        try:
            pairs.append((item, read(item)))
        except Malformed as why:
            problems.add(why.kind, f"{item.id}: {why}")
    return pairs


def generated(
    subject: Subject, prompts: Sequence[Prompt], ids: Sequence[int | str], problems: Problems
) -> list[Generated | None]:
    """Generate. A failed generation is None and a problem, not an empty answer."""
    answers: list[Generated | None] = []
    for id, answer in zip(ids, subject.generate(prompts), strict=True):
        if answer.problem:
            problems.add("answers_missing", f"{id}: {answer.problem}")
        elif not answer.text.strip():
            problems.add("empty_answers", str(id))
        answers.append(None if answer.problem else answer)
    return answers


def plural(key: str) -> str:
    return PLURALS.get(key, key + "s")
