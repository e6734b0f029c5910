"""Canaries: prompts whose answers must keep some properties, asked again and again of the running engine.

A file is a YAML list, or JSON lines, of

    - id: paris
      prompt: What is the capital of France?      # or messages: [{role, content}, …]
      max_new_tokens: 32
      expect: {contains: [Paris], refuses: false, language: en, max_words: 40}

All properties must hold: contains (every one), contains_any, not_contains (these three without regard to case), matches and
not_matches (regular expressions), refuses (lm/evals/judges/refusals.py), language (ISO 639), min_words, max_words.
Answers are greedy, so a canary fails because the behaviour changed, never by chance.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.chat.template import encode_chat, end_of_turn
from data.filters.language import identify
from lm.errors import UserError
from lm.evals.judges.refusals import is_refusal
from lm.infer.engine.request import Request

TIMEOUT = 120.0  # seconds for an answer
Messages = Sequence[Mapping[str, str]]
# ask(messages, max_new_tokens, adapter) -> the answer; None: the engine was too busy or failed.
Ask = Callable[[Messages, int, str], str | None]


class Canary(NamedTuple):
    id: str
    messages: tuple[dict, ...]
    expect: Mapping[str, Any]
    max_new_tokens: int = 64


# property: (type, check(answer, value) -> why it does not hold, or "")
PROPERTIES: dict[str, tuple[type, Callable[[str, Any], str]]] = {
    "contains": (list, lambda text, v: ", ".join(f"lacks {one!r}" for one in v if one.lower() not in text.lower())),
    "contains_any": (list, lambda text, v: "" if any(one.lower() in text.lower() for one in v) else f"has none of {v}"),
    "not_contains": (list, lambda text, v: ", ".join(f"has {one!r}" for one in v if one.lower() in text.lower())),
    "matches": (str, lambda text, v: "" if re.search(v, text) else f"does not match {v!r}"),
    "not_matches": (str, lambda text, v: f"matches {v!r}" if re.search(v, text) else ""),
    "refuses": (bool, lambda text, v: "" if is_refusal(text) == v else "does not refuse" if v else "refuses"),
    "language": (str, lambda text, v: "" if (found := str(identify([text])[0][0])) == v else f"is in language {found}"),
    "min_words": (int, lambda text, v: "" if len(text.split()) >= v else f"has {len(text.split())} words"),
    "max_words": (int, lambda text, v: "" if len(text.split()) <= v else f"has {len(text.split())} words"),
}


def problems(canary: Canary, answer: str) -> list[str]:
    """Return why an answer lacks expected properties; [] if it has all."""
    return [why for name, value in canary.expect.items() if (why := PROPERTIES[name][1](answer, value))]


def read_canaries(path: str | Path) -> list[Canary]:
    """Read a file of canaries. Raises: UserError with the place of what is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if str(path).endswith(".jsonl") else None
        rows = yaml.safe_load(text) if rows is None else rows
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"monitor.canaries={path}: cannot be read ({error}); name a YAML list or JSON lines") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"monitor.canaries={path}: holds no list of canaries")
    found = [_canary(row, f"{path}: canary {n + 1}") for n, row in enumerate(rows)]
    if len({one.id for one in found}) < len(found):
        raise UserError(f"{path}: two canaries have the same id; give each an id of its own")
    return found


def _canary(row: Any, where: str) -> Canary:
    known = {"id", "prompt", "messages", "max_new_tokens", "expect"}
    if not isinstance(row, Mapping) or not {"id", "expect"} <= set(row) or ("prompt" in row) == ("messages" in row):
        raise UserError(f"{where}: must have id, expect, and either prompt or messages")
    if unknown := set(row) - known:
        raise UserError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(sorted(known))}")
    where = f"{where} ({row['id']})"
    messages = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
    whole = isinstance(messages, list) and messages and all(isinstance(m, Mapping) for m in messages)
    if not whole or not all(isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in messages):
        raise UserError(f"{where}: the prompt must be text, or messages with role and content")
    expect = row["expect"]
    if not isinstance(expect, Mapping) or not expect:
        raise UserError(f"{where}: expect must map properties to values; known are {', '.join(PROPERTIES)}")
    for name, value in expect.items():
        if name not in PROPERTIES:
            raise UserError(f"{where}: expect: no property {name!r}; known are {', '.join(PROPERTIES)}")
        kind = PROPERTIES[name][0]
        if not isinstance(value, kind) or (kind is list and not all(isinstance(one, str) for one in value)):
            raise UserError(f"{where}: expect: {name}: {value!r} is no {'list of texts' if kind is list else kind.__name__}")
        if name.endswith("matches"):
            try:
                re.compile(value)
            except re.error as error:
                raise UserError(f"{where}: expect: {name}: {value!r} is no regular expression: {error}") from None
    most = row.get("max_new_tokens", Canary._field_defaults["max_new_tokens"])
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise UserError(f"{where}: max_new_tokens: {most!r} is no positive number")
    return Canary(str(row["id"]), tuple(map(dict, messages)), dict(expect), most)


def asker(engine, template: str | None = None) -> Ask:
    """Return a function that asks the engine. template: a chat template in Jinja; None is the tokenizer's own."""
    end = end_of_turn(engine.tokenizer, template)

    def ask(messages: Messages, max_new_tokens: int, adapter: str) -> str | None:
        ids = tuple(encode_chat(engine.tokenizer, list(messages), template=template, add_generation_prompt=True).ids)
        about = {"stop_ids": (end,), "adapter": adapter, "user": "canary", "deadline": TIMEOUT}
        try:
            [event] = engine.answers([Request(ids, max_new_tokens, temperature=0.0, **about)])
        except Exception:  # Full, or an adapter that was unloaded: the next run asks again
            return None
        if event.finish not in ("stop", "length"):
            return None
        return engine.tokenizer.decode([token for token in event.tokens if token != end])

    return ask


class Rounds:
    """Asks all canaries of the model and of each adapter, every `minutes`, on a thread of its own.

    report(canary, checkpoint, adapter, answer, wrong): called after each one; answer and wrong are None without an answer.
    """

    def __init__(
        self,
        canaries: Sequence[Canary],
        ask: Ask,
        report: Callable[[Canary, str, str, str | None, list[str] | None], None],
        adapters: Callable[[], Sequence[str]],
        checkpoint: Callable[[], str],
        minutes: float,
    ):
        self.canaries, self.ask, self.report, self.minutes = canaries, ask, report, minutes
        self.adapters, self.checkpoint = adapters, checkpoint
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canaries", daemon=True)
        self._thread.start()  # the first round begins at once

    def close(self) -> None:
        """End after the canary that is being asked."""
        self._closed.set()
        self._thread.join(timeout=2 * TIMEOUT)

    def round(self) -> None:
        """Ask each canary once. An answer during which the checkpoint was swapped counts as none."""
        for adapter in ("", *self.adapters()):
            for canary in self.canaries:
                if self._closed.is_set():
                    return
                checkpoint = self.checkpoint()
                answer = self.ask(canary.messages, canary.max_new_tokens, adapter)
                if checkpoint != self.checkpoint():
                    answer = None
                self.report(canary, checkpoint, adapter, answer, None if answer is None else problems(canary, answer))

    def _run(self) -> None:
        self.round()
        while not self._closed.wait(60 * self.minutes):
            self.round()
