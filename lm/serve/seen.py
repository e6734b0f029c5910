"""One request on its way through the monitor: what is asked, what is sent, and what is kept of it."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.infer.engine.request import Likely, Request
from lm.serve.guardrails import Decision, Guardrails
from lm.serve.metrics import Metrics
from lm.serve.store import Exchange
from lm.serve.watch import measures

LONGEST = 32_768  # characters of an answer that are kept


class Seen:
    """A request that is being answered. blocked: why it must not be; refusal: what to say then. messages: for the model.

    decisions: of the guardrails, until now. measured: whether the monitor measures it.
    """

    def __init__(
        self,
        finished: Callable[["Seen"], None],
        metrics: Metrics,
        guardrails: Guardrails,
        about: Mapping[str, Any],
        choices: int,
        measured: bool,
    ):
        """finished: called once, when all choices are. about: the first fields of lm.serve.store.Exchange."""
        self._finished, self._metrics, self.measured, self.about = finished, metrics, measured, about
        self.messages: list[dict] = []
        self.blocked: Decision | None = None
        self.refusal = ""
        self.decisions: list[Decision] = []
        self._streams = [guardrails.stream() for _ in range(choices)]
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._kept, self._last = [0] * choices, [0.0] * choices
        self.likely: list[Likely] = []  # of choice 0
        self._finishes = [""] * choices
        self.tokens, self.prompt_tokens = [0] * choices, 0

    def with_logprobs(self, request: Request) -> Request:
        """Return the request of choice 0 with the log-probabilities that the monitor needs."""
        return dataclasses.replace(request, logprobs=max(request.logprobs, measures.TOP if self.measured else -1))

    def on_tokens(self, choice: int = 0, likely: Sequence[Likely] = (), tokens: int = 1) -> None:
        """Take what an Event of the engine adds to a choice."""
        now = time.monotonic()
        if tokens and self._last[choice]:
            gaps = self._metrics.of("inter_token_latency_seconds", adapter=self.about["adapter"])
            gaps.observe(now - self._last[choice])
        if tokens:
            self._last[choice] = now
        self.tokens[choice] += tokens
        if choice == 0 and self.measured:
            self.likely.extend(likely)

    def pass_on(self, choice: int, text: str, over: bool) -> tuple[str, bool]:
        """Take text of a choice. Return (text that may be sent now, whether the answer ends there). over: no more follows."""
        if text and self._kept[choice] < LONGEST:
            self._texts[choice].append(text)
            self._kept[choice] += len(text)
        stream = self._streams[choice]
        return stream.feed(text, over), stream.blocked is not None

    def on_finished(self, finish: str, choice: int = 0, tokens: int | None = None, prompt_tokens: int = 0) -> None:
        """End a choice; only the first call for each counts. finish: the engine's. tokens: of the answer; None: as told."""
        if self._finishes[choice]:
            return
        self._streams[choice].end()
        self._finishes[choice] = "content_filter" if self._streams[choice].blocked else finish
        self.tokens[choice] = self.tokens[choice] if tokens is None else tokens
        self.prompt_tokens = prompt_tokens or self.prompt_tokens
        if all(self._finishes):
            for stream in self._streams:
                self.decisions += stream.decisions
            self._finished(self)

    def refuse(self) -> None:
        """End the request, which a rule blocked, with its refusal as the only answer."""
        self._finishes = ["content_filter"] * len(self._finishes)
        self._texts[0] = [self.refusal]
        self._finished(self)

    def answers(self) -> list[str]:
        """Return what the model wrote, by choice, whether or not it was sent."""
        return ["".join(texts)[:LONGEST] for texts in self._texts]

    def exchange(self, measured: Mapping[str, Any] | None = None, flagged: bool = False) -> Exchange:
        """Return what the store keeps."""
        rest = {"measures": measured or {}, "decisions": [one._asdict() for one in self.decisions], "flagged": flagged}
        return Exchange(**self.about, answers=self.answers(), finish=self._finishes[0], **rest)

    @property
    def prompt(self) -> str:
        """The user's last message."""
        messages = self.about["messages"]
        return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
