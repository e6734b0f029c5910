"""The interfaces of an evaluation: the model under evaluation as tasks ask it, the task, and its outcome.

Tasks use only the Subject. So they run on our models (lm/evals/engine/model_subject.py), on test oracles with known answers, or
on a model behind an API that returns no likelihoods.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data.media.parts import Medium

if TYPE_CHECKING:
    from lm.infer.calls import Turn


class Continuation(NamedTuple):
    """A request for the likelihood of `continuation` after `context`. An empty context means the start of a document."""

    context: str
    continuation: str


class Likelihood(NamedTuple):
    """logp: Σ log p of the continuation's tokens, nats. greedy: whether each token was the most likely one. tokens: the
    continuation's ids. context_tokens: the context's ids as the model read them. cut: whether the context was too long, so that
    the model did not read its beginning."""

    logp: float
    greedy: bool
    tokens: tuple[int, ...] = ()
    context_tokens: tuple[int, ...] = ()
    cut: bool = False


class Rolled(NamedTuple):
    """The likelihood of a whole text. logps: of each token after the first context, nats, in order."""

    logps: tuple[float, ...]
    tokens: tuple[int, ...]


class Prompt(NamedTuple):
    """A text to continue until one of the strings `stops` (which is cut off), an end symbol, or max_new_tokens.

    temperature 0 is greedy. A sample depends only on the prompt, the settings and `seed`. media: images and sound that the text
    has tokens for, as `Subject.chat_prompt` writes them.
    """

    text: str
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    media: tuple[Medium, ...] = ()


class Generated(NamedTuple):
    """text: without the stop string. ended: by a stop or an end symbol, not by the length. problem: why there is no text. cut:
    whether the prompt was too long, so that the model did not read its beginning."""

    text: str
    ended: bool = True
    tokens: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    problem: str = ""
    cut: bool = False


class Subject(Protocol):
    """Each method answers in the order of the requests. An answer does not depend on the other requests of the call."""

    name: str

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]: ...

    def rolled(self, texts: Sequence[str]) -> list[Rolled]: ...

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]: ...

    def chat_prompt(self, messages: Sequence[dict[str, Any]], prefill: str = "", tools: Sequence[dict] | None = None) -> str:
        """Return messages as the text that the model continues with its answer. It uses the model's chat template; a model
        without one gets a plain "User: … Assistant:" form. prefill: the beginning of the answer. tools: schemas to declare.

        Messages may have `media`, with placeholders in their content (data/media/parts.py). Raises: UserError if the model
        cannot read them, or its template declares no tools.
        """
        ...

    def turn(self, generated: Generated) -> "Turn":
        """Return a generated answer with its calls of tools parsed."""
        ...


class Outcome(NamedTuple):
    """results: {metric: value, metric_stderr: …, "n": items scored, "problems": {kind: {"n", "examples"}}, …}. A value is None
    if it is unknown. Parts are optional: {"subjects": {name: {…}}}. samples: one dict per item, in the order of the items, with
    at least task, doc_id, prompt, target, metrics {metric: value of this item} and failed (bool); and, where the item has
    problems, flags: their kinds.
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]]


class Task(Protocol):
    """An evaluation task. name: its key in results.json. versions: of its data, prompts and template."""

    name: str
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome: ...


class TaskSettings(NamedTuple):
    """Settings of a task. None means the value of the task's file.

    data_dir: the files are DIR/<task>/*. limit: the maximum number of items or, below 1, the share of them. chat: whether to
    apply the chat template. fewshot_as_multiturn: send the examples as separate turns. judge: a name from judges/judges.py.
    options: config.options, by task kind.
    """

    data_dir: Path | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    chat: bool = False
    system: str = ""
    fewshot_as_multiturn: bool = False
    seed: int = 1234
    judge: str = "rules"
    options: dict[str, Any] = {}
