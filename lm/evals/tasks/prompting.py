"""Render documents as prompts with the templates of a task file, byte for byte as lm-evaluation-harness 0.4.13 does.

A template is Jinja over the keys of a document, or the name of a key; a template that is an identifier counts as a name.
doc_to_text gives the question, doc_to_choice the choices if any, and doc_to_target the answer: a text, the index of a choice,
or a list of either. An example is question, target_delimiter, answer, fewshot_delimiter. If doc_to_text is a number, the
choices are the contexts: the number is the index of the right one, and doc_to_target is the continuation of each. Images and
sound stand at the <image>s and <audio>s of a question, or before it.
"""

import ast
import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from data.chat.limited_jinja import LimitedEnvironment, rendered
from data.media.parts import ANY_PLACEHOLDER, KIND_OF, KINDS, PLACEHOLDER, Medium, resolved
from lm.errors import UserError
from lm.evals.stats.joining import Malformed, present
from lm.evals.task import Subject, TaskSettings
from lm.evals.tasks.documents import DATA_ERRORS, Documents, TaskItem, described
from lm.evals.tasks.settings import check

KEYS = {
    "description": (str, dict),
    "doc_to_text": str,
    "doc_to_choice": (str, list),
    "doc_to_target": (str, int),
    "target_delimiter": str,
    "fewshot_delimiter": str,
    "gen_prefix": str,
}
MEDIA_KEYS = {f"doc_to_{kind}": (str, list) for kind in KINDS}  # names of columns
FEWSHOT_KEYS = {"sampler": str, "samples": list} | {k: KEYS[k] for k in ("doc_to_text", "doc_to_choice", "doc_to_target")}
SAMPLERS = ("default", "first_n")
MARKS = {"image": re.compile(r"<image(?: ?\d+)?>"), "audio": re.compile(r"<audio(?: ?\d+)?>")}  # as lm-eval's tasks write them

_ENVIRONMENT = LimitedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.add_filter("regex_replace", lambda text, pattern, repl, count=0: re.sub(pattern, repl, text, count=count))
_template = functools.lru_cache(maxsize=1024)(_ENVIRONMENT.compiled)


class Context(NamedTuple):
    """text: the prompt. messages: the conversation that it was rendered from, up to the answer; None without one.

    media: images and sound of the messages, in their order.
    """

    text: str
    messages: tuple[dict[str, Any], ...] | None = None
    media: tuple[Medium, ...] = ()


class Form(NamedTuple):
    """Templates of a document. columns: the keys that documents have."""

    text: str
    choice: str | list | None
    target: str | int | None
    columns: frozenset[str]

    def question(self, doc: Mapping[str, Any]) -> str | int:
        value = self.render(self.text, doc)
        return int(value) if not self.names(self.text) and self.choice is not None and value.isdigit() else value

    def choices(self, doc: Mapping[str, Any]) -> list[str] | None:
        if self.choice is None or isinstance(self.choice, list):
            return self.choice
        value = self.render(self.choice, doc)
        choices = value if self.names(self.choice) else ast.literal_eval(value)
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise Malformed(f"choices are {choices!r}, not a list of texts")
        return choices

    def answer(self, doc: Mapping[str, Any]) -> str | int | list:
        if not isinstance(self.target, str):
            return self.target
        value = self.render(self.target, doc)
        if self.names(self.target):
            return value
        if self.choice is not None and value.isdigit():
            return int(value)
        if len(value) >= 2 and value[0] == "[" and value[-1] == "]":
            with contextlib.suppress(SyntaxError, ValueError):
                return ast.literal_eval(value)
        return value

    def names(self, template: str) -> bool:
        """Return whether `template` is a key of documents and not a template."""
        return template in self.columns or template.isidentifier()

    def render(self, template: str, doc: Mapping[str, Any]) -> Any:
        if not self.names(template):
            return rendered(_template(template), doc)
        return present(doc, template)


class Columns(NamedTuple):
    """Columns of images and sound. names: by kind. folder: that of the task's files, where paths lead; None: there are none."""

    names: Mapping[str, Sequence[str]]
    folder: str | None

    def media(self, doc: Mapping[str, Any], where: str) -> tuple[Medium, ...]:
        """Return the media of a document, images first. Raises: Malformed if a file is missing."""
        media = []
        for kind, names in self.names.items():
            for name in names:
                value = doc.get(name)
                for item in value if isinstance(value, list | tuple) else [value]:
                    media += [Medium(kind, item, f"{where}, {name}")] if item is not None else []
        if not media:
            raise Malformed(f"{where}: no {' and no '.join(self.names)} in its columns")
        try:
            (message,) = resolved([[{"role": "user", "content": "", "media": media}]], {}, self.folder, where)[0]
        except UserError as error:
            raise Malformed(str(error)) from None
        return tuple(message["media"])


class Prompts(NamedTuple):
    """Prompts of one task. values: its settings. shown: its media, only with a chat template."""

    form: Form
    shot_form: Form
    values: Mapping[str, Any]
    settings: TaskSettings
    shown: Columns | None

    def contexts(self, item: TaskItem, subject: Subject) -> list[Context]:
        """Return the text before the answer: one context, or one for each choice if the choices are the contexts.

        Raises: Malformed for an item that the templates cannot render.
        """
        with reading():
            begin = self._begin(item)
            question = self.form.question(item.doc)
            prefix = self._render(self.values["gen_prefix"], item.doc)
            if isinstance(question, int):
                questions = self.form.choices(item.doc) or []
                if any(not isinstance(choice, str) for choice in questions) or not questions:
                    raise Malformed("doc_to_text is a number, but there are no choices")
                return [self._context([*begin, *_turns(choice, "", prefix, "")], subject) for choice in questions]
            turns = self._shown(_turns(question, "", prefix, self.values["target_delimiter"]), item.doc, f"item {item.id}")
            return [self._context([*begin, *turns], subject)]

    def delimiter(self) -> str:
        """Return the text between a context and a choice; empty if a chat template ends the context."""
        prefix = self.values["gen_prefix"]
        return self.values["target_delimiter"] if not self.settings.chat or (prefix and not prefix[-1].isspace()) else ""

    def _begin(self, item: TaskItem) -> list["Turn"]:
        text = self.values["description"]
        text = text.get(item.group, "") if isinstance(text, dict) else text
        system = _joined(self.settings.system, self._render(text, item.doc), self.values["fewshot_delimiter"])
        turns = [Turn("system", system, "")] if system else []
        for number, doc in enumerate(item.shots):
            try:
                turns += self._shot(doc)
            except (*DATA_ERRORS, jinja2.TemplateError) as error:
                raise Malformed(f"its example {number}: {described(error)}") from None
        return turns

    def _shot(self, doc: Mapping[str, Any]) -> list["Turn"]:
        question, choices, answer = self.shot_form.question(doc), self.shot_form.choices(doc), self.shot_form.answer(doc)
        if isinstance(question, int):
            question, choices = (choices or [])[question], None
        first = answer[0] if isinstance(answer, list) and answer else answer
        reply = choices[first] if choices and isinstance(first, int) else first
        if not isinstance(reply, str):
            raise Malformed(f"the answer is {answer!r}, not a text")
        prefix = self._render(self.values["gen_prefix"], doc)
        turns = _turns(question, reply, prefix, self.values["target_delimiter"], self.values["fewshot_delimiter"])
        return self._shown(turns, doc, "an example")

    def _shown(self, turns: list["Turn"], doc: Mapping[str, Any], where: str) -> list["Turn"]:
        """Return turns whose first one, the question, has the document's media."""
        if self.shown is None:
            return turns
        media = self.shown.media(doc, where)
        text = with_places(turns[0].text, media)
        return [turns[0]._replace(text=text, media=ordered(text, media)), *turns[1:]]

    def _render(self, template: str | None, doc: Mapping[str, Any]) -> str:
        """Render a description or prefix. Here a single word is a name only if a document has that key."""
        if not template:
            return ""
        return str(doc[template]) if template in self.form.columns else rendered(_template(template), doc)

    def _context(self, turns: list["Turn"], subject: Subject) -> Context:
        if not self.settings.chat:
            return Context("".join(turn.text + turn.delimiter for turn in turns))
        prefill = turns.pop().text if turns[-1].role == "assistant" else ""
        if not self.settings.fewshot_as_multiturn:
            turns[-1] = turns[-1]._replace(delimiter="")
            systems = [turn for turn in turns if turn.role == "system"]
            whole = "".join(turn.text + turn.delimiter for turn in turns if turn.role != "system")
            turns = [*systems, Turn("user", whole, "", sum((turn.media for turn in turns), ()))]
        messages = tuple(
            {"role": turn.role, "content": turn.text} | ({"media": list(turn.media)} if turn.media else {}) for turn in turns
        )
        try:
            return Context(subject.chat_prompt(messages, prefill), messages, sum((turn.media for turn in turns), ()))
        except UserError as error:
            if self.shown is None:
                raise
            raise Malformed(str(error)) from None  # a file that is no image, for instance


class Turn(NamedTuple):
    """delimiter: the text after this turn when the prompt is not split into turns. media: those of the text's placeholders."""

    role: str
    text: str
    delimiter: str
    media: tuple[Medium, ...] = ()


def open_prompts(name: str, spec: Mapping[str, Any], settings: TaskSettings, documents: Documents) -> Prompts:
    """Return the prompts of a task. Raises: UserError for an invalid template."""
    config = spec.get("fewshot_config") or {}
    check(f"task {name}: fewshot_config", config, FEWSHOT_KEYS)
    if config.get("sampler", "default") not in SAMPLERS:
        raise UserError(f"task {name}: fewshot_config.sampler: {config['sampler']!r} is none of {', '.join(SAMPLERS)}")
    for key in ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "gen_prefix"):
        for text in (spec.get(key), config.get(key)):
            for template in text.values() if isinstance(text, dict) else [text]:
                try:
                    _template(template) if isinstance(template, str) else None
                except jinja2.TemplateError as error:
                    raise UserError(f"task {name}: {key}: {error}") from None

    def form(*places: Mapping[str, Any]) -> Form:
        values = (
            next((place[key] for place in places if place.get(key) is not None), None)
            for key in ("doc_to_text", "doc_to_choice", "doc_to_target")
        )
        return Form(*values, documents.columns)

    values = {"description": "", "target_delimiter": " ", "fewshot_delimiter": "\n\n", "gen_prefix": ""} | dict(spec)
    return Prompts(form(spec), form(config, spec), values, settings, columns_of(spec, documents.folder))


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn any error of a template or a document into Malformed."""
    try:
        yield
    except Malformed:
        raise
    except (*DATA_ERRORS, jinja2.TemplateError) as error:
        raise Malformed(described(error)) from None


def _turns(question: str, answer: str, prefix: str, target_delimiter: str, fewshot_delimiter: str = "") -> list[Turn]:
    """Return the turns of a question and of its answer, if any, which begins with the prefix."""
    if not isinstance(question, str):
        raise Malformed(f"the question is a {type(question).__name__}, not a text")
    apart = _apart(question, prefix) if prefix else bool(answer)
    turns = [Turn("user", question, target_delimiter if apart else "")]
    if answer:
        turns.append(Turn("assistant", _joined(prefix, answer, " "), fewshot_delimiter))
    elif prefix:
        turns.append(Turn("assistant", prefix, ""))
    return turns


def _joined(before: str, after: str, delimiter: str) -> str:
    """Join both texts with the delimiter, unless there is already a space between them."""
    return before + (delimiter if after and _apart(before, after) else "") + after


def _apart(before: str, after: str) -> bool:
    return bool(before) and not (before[-1].isspace() or after[0].isspace())


def columns_of(spec: Mapping[str, Any], folder: Path | None) -> Columns | None:
    """Return the columns that a task file names, or None for a task of text."""
    names = {kind: spec[key] for kind, key in zip(KINDS, MEDIA_KEYS) if spec.get(key)}
    names = {kind: [value] if isinstance(value, str) else list(value) for kind, value in names.items()}
    return Columns(names, str(folder) if folder else None) if names else None


def with_places(question: str, media: Sequence[Medium]) -> str:
    """Return a question with a placeholder for each medium: at its <image>s and <audio>s if it has as many, else before it."""
    question, before = ANY_PLACEHOLDER.sub("\ufffd", question), ""
    for kind in KINDS:
        count = sum(medium.kind == kind for medium in media)
        if count and len(MARKS[kind].findall(question)) == count:
            question = MARKS[kind].sub(PLACEHOLDER[kind], question)
        else:
            before += PLACEHOLDER[kind] * count
    return before + question


def ordered(question: str, media: Sequence[Medium]) -> tuple[Medium, ...]:
    """Return media in the order of their placeholders in the question."""
    left = {kind: iter([medium for medium in media if medium.kind == kind]) for kind in KINDS}
    return tuple(next(left[KIND_OF[placeholder]]) for placeholder in ANY_PLACEHOLDER.findall(question))
