"""Convert records of common public formats to examples of a few kinds, one kind per training method.

The keys of a record tell its format. A kind accepts every format that it can be made from: a preference pair also gives a
conversation (the chosen answer), or two labelled answers. A record of another format raises an error that names it. An example
with nothing to train on is dropped and counted.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import xxhash

from data.chat.messages import (
    Conversation,
    Example,
    Labelled,
    Messages,
    Pair,
    Steps,
    Task,
    is_list,
    is_transcript,
    make_message,
    messages_of,
    parsed,
    says_something,
    transcript,
    without_answer,
)
from data.chat.records import Record, is_builtin, read_builtin, read_records
from data.media.parts import digest, media_keys, resolved
from data.sources.reading import listed
from data.text.near_copies import normalise
from lm.errors import UserError

LISTS = ("messages", "conversations", "conversation")
# Keys of (question, additional input, answer).
TURNS = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", "", "completion"),
    ("prompt", "", "response"),
    ("question", "", "answer"),
    ("question", "", "response"),
    ("query", "", "response"),
    ("problem", "", "solution"),
)
SYSTEM = ("system", "system_prompt")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"))


class Dropped(Exception):
    """Raised with the reason if a record has nothing to train on."""


def read_examples(
    input: str,
    kind: str,
    split: str,
    *,
    valid_fraction: float,
    seed: int,
    max_examples: int | None = None,
    dropped: Counter | None = None,
) -> Iterator[Example]:
    """Yield the examples of one split of an input, in order.

    Conversations with the same opening (all messages up to the user's first) are in the same split. So equal prompts, and
    prefixes of one conversation, are never split. A built-in task has its own splits, and its `train` is endless.

    Args:
      input: see data/chat/records.py. kind: a key of KINDS. split: train or valid.
      valid_fraction: fraction of openings held out, by their hash with `seed`. max_examples: limit on the examples.
      dropped: counts dropped records of both splits by reason.
    Raises: UserError with the location, for unreadable records or unknown formats.
    """
    builtin = is_builtin(input)
    records = read_builtin(input, split, seed) if builtin else read_records(input)
    examples = examples_of(records, kind, Counter() if dropped is None else dropped)
    if not builtin:
        examples = (e for e in examples if (split_number(e, seed) < valid_fraction) == (split == "valid"))
    return itertools.islice(examples, max_examples)


def split_number(example: Example, seed: int) -> float:
    """Return a hash in [0, 1) of the conversation's opening, ignoring case and white space."""
    messages = example.messages if isinstance(example, Conversation) else example.prompt
    end = next((n for n, message in enumerate(messages, start=1) if message["role"] == "user"), len(messages))
    opening = "\0".join(f"{message['role']}\0{message['content']}{digest(message)}" for message in messages[:end])
    return xxhash.xxh3_64_intdigest(normalise(opening), seed=seed % (1 << 64)) / 2**64


def examples_of(records: Iterable[Record], kind: str, dropped: Counter) -> Iterator[Example]:
    """Yield the examples of records in any format (see `read_examples`)."""
    for record in records:
        try:
            for example in KINDS[kind](record):
                yield _with_media(example, record)
        except Dropped as reason:
            dropped[str(reason)] += 1


def _with_media(example: Example, record: Record) -> Example:
    """Return the example with the images and audio of its messages and of the columns of its record (data/media/parts.py)."""
    names = [name for name in ("messages", "prompt", "chosen", "rejected", "completion") if hasattr(example, name)]
    parts = [getattr(example, name) for name in names]
    found = resolved(parts, record.values, record.folder, record.where)
    return example if found == parts else example._replace(**dict(zip(names, found)))


# Kinds.


def _conversations(record: Record) -> Iterator[Conversation]:
    values, where, _ = record
    if values.get("chosen") is not None or _has_scored(values):
        for pair in _pairs(record):
            yield Conversation(pair.prompt + pair.chosen, pair.tools)
        return
    if values.get("label") is not None and not _is_true(values["label"], where):
        raise Dropped("an undesirable answer")
    if (key := _list_key(values)) is not None:
        messages = _with_system(values, messages_of(values[key], where, media=True))
    elif (turn := _turn(values, answered=True)) is not None:
        messages = _prompt(record, turn) + _answer(values[turn[2]], where)
    else:
        raise _shapeless(record, "conversation", "messages, conversations, instruction and output, prompt and completion")
    if not any(says_something(message) for message in messages if message["role"] == "assistant"):
        raise Dropped("no answer")
    yield Conversation(messages, _tools(values, where))


def _pairs(record: Record) -> Iterator[Pair]:
    values, where, _ = record
    margin = 0.0
    if values.get("chosen") is not None and values.get("rejected") is not None:
        prompt, chosen, rejected = _parted(record)
        margin = _margin(values)
    elif _has_scored(values):
        prompt = _prompt(record)
        (least, worst), (most, best) = _extremes(values["completions"])
        chosen, rejected, margin = _answer(best, where), _answer(worst, where), most - least
    elif all(values.get(key) is not None for key in ("prompt", "completion", "rejected")):
        prompt, chosen, rejected = _prompt(record), *(_answer(values[key], where) for key in ("completion", "rejected"))
    else:
        raise _shapeless(record, "preference pair", "chosen and rejected, with or without prompt; scored completions")
    if chosen == rejected:
        raise Dropped("chosen and rejected are the same")
    _check_answer(chosen)
    _check_answer(rejected)
    yield Pair(prompt, chosen, rejected, margin, _tools(values, where))


def _labelled(record: Record) -> Iterator[Labelled]:
    values, where, _ = record
    if "label" not in values and not {"chosen", "rejected", "completions"}.isdisjoint(values):
        for pair in _pairs(record):
            yield Labelled(pair.prompt, pair.chosen, True, pair.tools)
            yield Labelled(pair.prompt, pair.rejected, False, pair.tools)
        return
    if any(values.get(key) is None for key in ("prompt", "completion", "label")):
        raise _shapeless(record, "labelled answer", "prompt, completion and label; or those of a preference pair")
    completion = _answer(values["completion"], where)
    _check_answer(completion)
    yield Labelled(_prompt(record), completion, _is_true(values["label"], where), _tools(values, where))


def _steps(record: Record) -> Iterator[Steps]:
    values, where, _ = record
    steps, labels = values.get("completions"), values.get("labels")
    if not (is_list(steps) and is_list(labels) and all(isinstance(step, str) for step in steps)):
        raise _shapeless(record, "answer in steps", "prompt, completions (a list of steps) and labels (one for each)")
    if len(steps) != len(labels):
        raise UserError(f"{where}: {len(steps)} completions and {len(labels)} labels; give one label for each step")
    if not any(step.strip() for step in steps):
        raise Dropped("no answer")
    yield Steps(_prompt(record), list(steps), [_is_true(label, where) for label in labels])


def _tasks(record: Record) -> Iterator[Task]:
    values, where, _ = record
    if "chosen" in values and "rejected" in values:
        prompt = _parted(record)[0]
    elif (key := _list_key(values)) is not None and "prompt" not in values:
        prompt = without_answer(_with_system(values, messages_of(values[key], where, media=True)))
    else:
        prompt = _prompt(record)
    if not prompt:
        raise Dropped("no prompt")
    turn = _turn(values) or ("", "", "")
    used = {*turn[:2], *LISTS, *SYSTEM, "chosen", "rejected", *media_keys(values)}
    columns = {key: value for key, value in values.items() if key not in used}
    solution = columns.get("answer")
    if isinstance(solution, str) and "####" in solution:  # the final answer in GSM8K (Cobbe et al. 2021)
        columns |= {"solution": solution, "answer": solution.rpartition("####")[2].strip().replace(",", "")}
    yield Task(prompt, columns | ({"tools": _tools(values, where)} if "tools" in values else {}))


KINDS = {"conversation": _conversations, "pair": _pairs, "labelled": _labelled, "steps": _steps, "task": _tasks}


# Parts of records.


def _list_key(values: Mapping) -> str | None:
    return next((key for key in LISTS if is_list(values.get(key))), None)


def _turn(values: Mapping, answered: bool = False) -> tuple[str, str, str] | None:
    """Return the entry of TURNS that matches the record; if several match, the one with most keys present."""
    there = [turn for turn in TURNS if values.get(turn[0]) is not None]
    if answered:
        there = [turn for turn in there if values.get(turn[2]) is not None]
    return max(there, key=lambda turn: sum(values.get(key) is not None for key in turn), default=None)


def _prompt(record: Record, turn: tuple[str, str, str] | None = None) -> Messages:
    values, where, _ = record
    turn = turn or _turn(values)
    asked = values[turn[0]] if turn else None
    if is_list(asked):
        messages = messages_of(asked, where, media=True)
    elif is_transcript(asked):
        messages = transcript(asked)
        if messages[-1] == make_message("assistant", ""):
            del messages[-1]
    elif isinstance(asked, str):
        added = values.get(turn[1])
        messages = [make_message("user", f"{asked}\n\n{added}" if isinstance(added, str) and added.strip() else asked)]
    else:
        raise _shapeless(record, "prompt", "prompt, question, problem, query, instruction")
    return _with_system(values, messages)


def _with_system(values: Mapping, messages: Messages) -> Messages:
    system = next((values[key] for key in SYSTEM if isinstance(values.get(key), str)), "")
    if system.strip() and not (messages and messages[0]["role"] == "system"):
        return [make_message("system", system), *messages]
    return messages


def _answer(value: Any, where: str) -> Messages:
    if isinstance(value, str):
        return [make_message("assistant", value)]
    if is_list(value):
        return messages_of(value, where, media=True)
    raise UserError(f"{where}: an answer is {type(value).__name__}; write text or a list of messages")


def _parted(record: Record) -> tuple[Messages, Messages, Messages]:
    """Return (prompt, chosen, rejected). If the answers are whole conversations, their common prefix is the prompt."""
    values, where, _ = record
    texts = values["chosen"], values["rejected"]
    one, other = (transcript(text) if is_transcript(text) else _answer(text, where) for text in texts)
    whole = all(answer and answer[0]["role"] != "assistant" for answer in (one, other)) or all(map(is_transcript, texts))
    given = _turn(values)
    if whole and given and is_list(values[given[0]]):  # the answers may repeat the prompt or only continue it
        prompt = messages_of(values[given[0]], where, media=True)
        whole = all(answer[: len(prompt)] == prompt for answer in (one, other))
    if not whole:
        return _prompt(record), one, other
    most = max(min(len(one), len(other)) - 1, 0)
    shared = next((n for n in range(most) if one[n] != other[n]), most)
    return _with_system(values, one[:shared]), one[shared:], other[shared:]


def _has_scored(values: Mapping) -> bool:
    completions = values.get("completions")
    return is_list(completions) and bool(completions) and all(isinstance(c, Mapping) for c in completions)


def _check_answer(answer: Messages) -> None:
    if not answer or answer[-1]["role"] != "assistant":
        raise Dropped("no answer at the end")
    if not says_something(answer[-1]):
        raise Dropped("an empty answer")


def _margin(values: Mapping) -> float:
    if (margin := _number(values.get("margin"))) is not None:
        return margin
    scores = [(_number(values.get(better)), _number(values.get(worse))) for better, worse in SCORES]
    return next((better - worse for better, worse in scores if better is not None and worse is not None), 0.0)


def _extremes(completions: Sequence[Mapping]) -> tuple[tuple[float, Any], tuple[float, Any]]:
    """Return (score, answer) of the worst and of the best scored completion (UltraFeedback, Cui et al. 2023)."""
    scored = []
    for completion in completions:
        scores = (_number(completion.get(key)) for key in ("fine-grained_score", "overall_score", "score"))
        score = next((score for score in scores if score is not None), None)
        answer = completion.get("response", completion.get("content"))
        if score is not None and answer is not None:
            scored.append((score, answer))
    if len(scored) < 2:
        raise Dropped("fewer than two scored answers")
    worst, best = min(scored, key=lambda pair: pair[0]), max(scored, key=lambda pair: pair[0])
    if worst[0] == best[0]:
        raise Dropped("answers that score alike")
    return worst, best


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_true(label: Any, where: str) -> bool:
    if isinstance(label, bool | int | float) and label in (-1, 0, 1):
        return label > 0
    raise UserError(f"{where}: the label {label!r} is neither true nor false; write one of these")


def _tools(values: Mapping, where: str) -> list[dict] | None:
    return list(parsed(values["tools"], Sequence, where)) or None if values.get("tools") else None


def _shapeless(record: Record, wanted: str, known: str) -> UserError:
    use = use_of(record.values)
    keys = f"{record.where}: no {wanted} in a record with the keys {listed(record.values)}"
    return UserError(f"{keys}; known are {known}" + (f"; {use}" if use else ""))


# What the keys of a record tell, and the command for it.
_USES = {
    "pair": ("it is a preference pair", "python align.py --config=configs/align/dpo.py"),
    "labelled": ("it is a labelled answer", "python align.py --config=configs/align/kto.py"),
    "steps": ("it is an answer in steps", "python align.py --config=configs/align/reward.py --config.reward.kind=process"),
    "conversation": ("it is a conversation", "python align.py --config=configs/align/sft.py"),
    "task": ("it is a prompt without an answer", "python align.py --config=configs/align/grpo.py"),
    "text": ("it is plain text", "python train.py --config=configs/train/tiny.py"),
}


def use_of(values: Mapping) -> str:
    """Return what a record is, by its keys, and the command that trains on such records; "" if its keys tell nothing."""
    there = {key for key, value in values.items() if value is not None}
    if {"chosen", "rejected"} <= there or _has_scored(values):
        kind = "pair"
    elif {"prompt", "completion", "label"} <= there:
        kind = "labelled"
    elif is_list(values.get("completions")) and is_list(values.get("labels")):
        kind = "steps"
    elif _list_key(values) or _turn(values, answered=True):
        kind = "conversation"
    elif _turn(values) and there <= {*itertools.chain(*TURNS), *SYSTEM, "id"}:
        kind = "task"
    elif isinstance(values.get("text"), str):
        kind = "text"
    else:
        return ""
    what, command = _USES[kind]
    return f"{what}: use {command}"
