"""The kinds of examples, one for each way to train."""

from typing import Any, NamedTuple

from data.chat.messages import Messages


class Conversation(NamedTuple):
    """A conversation; the assistant's turns are trained."""

    messages: Messages
    tools: list[dict] | None = None


class Pair(NamedTuple):
    """Two continuations of `prompt`. margin: how much better `chosen` is, 0 if unknown."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    margin: float = 0.0
    tools: list[dict] | None = None


class Labelled(NamedTuple):
    """A continuation of `prompt`, and whether it is desirable."""

    prompt: Messages
    completion: Messages
    desirable: bool
    tools: list[dict] | None = None


class Steps(NamedTuple):
    """An answer in steps, and whether each step is right."""

    prompt: Messages
    steps: list[str]
    labels: list[bool]


class Task(NamedTuple):
    """A prompt to answer. columns: data for the rewards, and `tools` if there are any."""

    prompt: Messages
    columns: dict[str, Any]


Example = Conversation | Pair | Labelled | Steps | Task
