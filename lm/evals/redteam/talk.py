"""Chats with the model under test and with models that help to attack it."""

from collections.abc import Sequence
from typing import Any

from lm.errors import UserError
from lm.evals.judges.endpoint import Chat, Reply, endpoint
from lm.evals.task import Generated, Prompt, Subject


def talk(
    subject: Subject,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    distinct: bool = False,
    system: str = "",
    heard: dict[str, Generated] | None = None,
) -> Chat:
    """Return a chat with the subject, which batches all conversations of a call. A sample depends on its text and seed.

    Args:
      distinct: whether equal conversations of a call get different samples, by their index in the call.
      system: put before every conversation. heard: a dict that receives each answer under its exact prompt.
    """

    def chat(conversations: Sequence[Sequence[dict[str, Any]]]) -> list[Reply]:
        texts = [subject.chat_prompt(with_system(system, messages)) for messages in conversations]
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        answers = subject.generate([Prompt(text, **options, seed=seed + n * distinct) for n, text in enumerate(texts)])
        if heard is not None:
            heard.update(zip(texts, answers, strict=True))
        return [Reply(None, answer.problem) if answer.problem else Reply(answer.text) for answer in answers]

    return chat


def with_system(system: str, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def helper(key: str, spec: str, model: str, subject: Subject, options: dict[str, Any], **talking: Any) -> Chat:
    """Open the chat `spec`: openai:URL, or "subject", the model under test itself.

    Args: options: see `endpoint`. talking: see `talk`.
    Raises: UserError for another name.
    """
    kind, _, url = spec.partition(":")
    if kind == "openai" and url:
        return endpoint(url, model, **options)
    if spec == "subject":
        return talk(subject, **talking)
    raise UserError(f"redteam: {key}={spec!r} is neither openai:URL nor subject")
