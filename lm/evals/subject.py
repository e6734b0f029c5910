"""What an evaluation asks of the model that it is about: likelihoods, texts, conversations.

Tasks see a Subject and nothing else of a model, so that they can be tried on an oracle, on a random or on a planted one
(tests), on ours (lm/evals/engine/engine.py), or on one behind an API that does not tell likelihoods.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Continuation(NamedTuple):
    """How likely is `continuation` after `context`? An empty context stands for the begin of a document."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """logp: Σ log p of the continuation's tokens, nats. greedy: each of them was the most likely. tokens: their ids, and
    context_tokens those before, as they were put to the model."""

    logp: float
    greedy: bool
    tokens: tuple[int, ...] = ()
    context_tokens: tuple[int, ...] = ()


class Rolled(NamedTuple):
    """A text's own likelihood. logps: of each token after the first context, nats, in order."""

    logps: tuple[float, ...]
    tokens: tuple[int, ...]


class Prompt(NamedTuple):
    """To be continued until one of the strings `stops` (which is cut off), an end symbol, or max_new_tokens.

    temperature 0 is greedy. A draw depends on the prompt, the settings and `seed`, and on nothing else.
    """

    text: str
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Generated(NamedTuple):
    """text without the stop. ended: by a stop or an end symbol, not by the length. problem: why there is no text."""

    text: str
    ended: bool = True
    tokens: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    problem: str = ""


class Subject(Protocol):
    """Answers come in the order of the requests, and do not depend on what else is asked in the same call."""

    name: str

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]: ...

    def rolled(self, texts: Sequence[str]) -> list[Rolled]: ...

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]: ...

    def chat_prompt(self, messages: Sequence[dict[str, Any]], prefill: str = "") -> str:
        """Messages as the text that the model continues with its answer: its chat template, or, of a model without one, a plain
        "User: … Assistant:" form. prefill: how the answer begins."""
        ...
