"""Rewards: plain functions that score completions, with TRL's signature, combined by weights.

A reward is called as reward(prompts, completions, **columns) and returns a list of float | None, one per completion; None means
that it does not apply. prompts: lists of messages. completions: texts, behind the thought if there is one. columns: lists of
the same length, one for each key of the task's records, and `rollouts` if they were sampled here (lm/align/rl/rollouts.py).
Keyword arguments with a default are options that the user may set: "overlong?limit=256&buffer=64=1".

With several processes the first one calls a reward, and all use its result or error, because an endpoint may answer each
process differently. All processes call a reward whose attribute `collective` is true, such as a reward model on the mesh.
"""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from lm.align.rl.reward_functions import OTHER_NAMES, REWARDS, Reward, nearest
from lm.errors import UserError
from lm.files.user_files import failing, from_file


class Rewards(NamedTuple):
    """Reward functions, their names in the logs, and their weights in the sum."""

    names: tuple[str, ...]
    functions: tuple[Reward, ...]
    weights: tuple[float, ...]


def parse_rewards(text: str) -> Rewards:
    """Parse rewards such as "answer=1,format=0.2,my_file.py:my_reward=0.5".

    Each is a key of REWARDS, FILE.py:FUNCTION, or reward_model:PATH. Options follow a question mark, and a weight ends it
    (default 1; weight 0 only logs the reward).
    Raises: UserError that names the invalid part and the nearest valid name.
    """
    names, functions, weights = [], [], []
    for part in filter(None, map(str.strip, text.split(","))):
        spec, equals, weight = part.rpartition("=")
        spec, weight = (spec, weight) if equals else (part, "1")
        try:
            weights.append(float(weight))
        except ValueError:
            raise UserError(f"rewards: {part!r} must end in a number, its weight, as in {spec}=1") from None
        if not math.isfinite(weights[-1]):
            raise UserError(f"rewards: the weight of {spec!r} is {weight}, which is no finite number")
        name, function = _reward(spec)
        if name in names:
            name = spec
        if name in names:
            raise UserError(f"rewards: {spec!r} is there twice")
        names.append(name)
        functions.append(function)
    if not names:
        raise UserError(f"rewards={text!r} names none: write answer=1, or some of {', '.join(REWARDS)}")
    return Rewards(tuple(names), tuple(functions), tuple(weights))


def _reward(spec: str) -> tuple[str, Reward]:
    """Return (name for the logs, function with its options bound)."""
    name, question, query = spec.partition("?")
    head, _, tail = name.partition(":")
    if head == "reward_model" and tail:
        from lm.align.reward_model import reward_model  # imports JAX, so only if needed

        label, function = head, reward_model(tail)
    elif ".py" in name and not tail:
        raise UserError(f"rewards: {name.rstrip(':')} needs the name of a function: write path/file.py:function")
    elif ".py" in name:
        path, _, label = name.rpartition(":")
        function = from_file(Path(path), label, "rewards", "path/file.py:function")
    elif name in REWARDS:
        label, function = name, REWARDS[name]
    else:
        known = (*REWARDS, "reward_model:PATH")
        near = OTHER_NAMES.get(name)
        hint = f"; the nearest is {near!r}" if near else nearest(name, known)
        raise UserError(f"rewards: no reward {name!r}{hint}; or write path/file.py:function")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if question else {}
    except ValueError:
        raise UserError(f"rewards: {spec!r} must have the form name?option=value&option=value=weight") from None
    return label, _with_options(label, function, options) if options else function


def _with_options(name: str, function: Reward, given: Mapping[str, str]) -> Reward:
    parameters = inspect.signature(function).parameters
    known = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    options = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"reward {name}: no option {key!r}{nearest(key, known)}")
        kind = type(known[key])
        try:
            options[key] = kind(value)
        except (TypeError, ValueError):
            raise UserError(f"reward {name}: {key}={value!r} must be of type {kind.__name__}, as {known[key]!r} is") from None

    @functools.wraps(function)
    def reward(prompts, completions, **columns):
        return function(prompts, completions, **{**columns, **options})

    return reward


NO_COLUMNS = ("prompt", "prompt_ids", "prompt_media")  # keys of a task that are no columns of its record


def check_columns(rewards: Rewards, prompt: Sequence[Mapping], columns: Mapping[str, object]) -> None:
    """Raise UserError if a reward that compares with a task's columns cannot use those of this task."""
    for name, function in zip(rewards.names, rewards.functions):
        if name in ("answer", "contains", "format", "length", "style", "tests"):
            function([prompt], [""], **{key: [value] for key, value in columns.items()})


def check_tasks(rewards: Rewards, tasks: Sequence[Mapping]) -> None:
    """Raise UserError if a reward that only measures compares with a column that none of the held-out tasks has."""
    columns = {name: value for task in tasks for name, value in task.items() if name not in NO_COLUMNS}
    try:
        if tasks:
            check_columns(rewards, tasks[0]["prompt"], columns)
    except UserError as error:
        raise UserError(f"{error}, or set rewards='', which measures none") from None


def scored(
    rewards: Rewards, prompts: Sequence, completions: Sequence[str], columns: Mapping[str, Sequence]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (Σ weight · reward, float64 [N]; rewards by name, float64 [N], NaN where one does not apply).

    Raises: UserError if a reward raises, returns a wrong number of values or a value that is not finite, or if no reward
    applies to a completion.
    """
    N = len(completions)
    for name, column in {"prompts": prompts, **columns}.items():
        if len(column) != N:
            raise ValueError(f"{N} completions, but {len(column)} {name}")
    each = {}
    for name, function in zip(rewards.names, rewards.functions):
        each[name] = _checked(name, function, list(prompts), list(completions), columns)
    values_RN = np.stack([each[name] for name in rewards.names])
    if N and (lost := np.flatnonzero(np.isnan(values_RN).all(axis=0))).size:
        i = lost[0]
        raise UserError(f"rewards: none of {', '.join(rewards.names)} applies to the completion {completions[i][:80]!r}")
    return np.nansum(values_RN * np.asarray(rewards.weights)[:, None], axis=0), each


def score_rollouts(rewards: Rewards, tasks: Sequence[dict], rollouts: Sequence) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the results of `scored` for one rollout of each task. The other keys of a task are columns."""
    names = dict.fromkeys(name for task in tasks for name in task if name not in NO_COLUMNS)
    columns = {name: [task.get(name) for task in tasks] for name in names} | {"rollouts": list(rollouts)}
    return scored(rewards, [task["prompt"] for task in tasks], [r.completion for r in rollouts], columns)


def answer_records(tasks: Sequence[dict], rollouts: Sequence, total: np.ndarray | None, each: Mapping) -> list[dict]:
    """Return what files keep of each answer. total, each: the results of `score_rollouts`, or None and {}.

    Keys: "messages" after the prompt, "reward", "rewards" by name, "tokens" (a count), "ended".
    """
    return [
        {
            "messages": rollout.messages[len(task["prompt"]) :],
            "reward": None if total is None else float(total[i]),
            "rewards": {name: None if np.isnan(values[i]) else float(values[i]) for name, values in each.items()},
            "tokens": rollout.length,
            "ended": rollout.ended,
        }
        for i, (task, rollout) in enumerate(zip(tasks, rollouts, strict=True))
    ]


def _checked(name: str, function: Reward, prompts: list, completions: list[str], columns: Mapping) -> np.ndarray:
    if getattr(function, "collective", False):
        return _called(name, function, prompts, completions, columns)
    from lm.parallel.hosts import from_first  # it imports JAX, which checks of a config must not load

    return from_first(lambda: _called(name, function, prompts, completions, columns))


def _called(name: str, function: Reward, prompts: list, completions: list[str], columns: Mapping) -> np.ndarray:
    with failing(f"reward {name} failed"):
        given = function(prompts, completions, **columns)
    try:
        values = np.asarray([math.nan if value is None else float(value) for value in given], np.float64)
        none = np.asarray([value is None for value in given], bool)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"reward {name} must return a list of numbers and None, one for each completion, not {repr(given)[:60]}"
        ) from error
    if len(values) != len(completions):
        raise UserError(f"reward {name} returned {len(values)} rewards for {len(completions)} completions")
    if (bad := np.flatnonzero(~none & ~np.isfinite(values))).size:
        i = bad[0]
        raise UserError(f"reward {name} is {values[i]} for {completions[i][:80]!r}: it must be finite, or None")
    return values
