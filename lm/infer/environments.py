"""Environments: stateful worlds in which a model acts, with the interface of gymnasium and texts on both sides.

Rollouts of align.py and tasks of evaluate.py act in them. An environment is a class without arguments; each episode has its own
object:

    reset(seed=…, options=record) -> (observation, info)
    step(action) -> (observation, reward, terminated, truncated, info)

options: the record of the episode's task, with all its columns. The first observation is the task's prompt. An action is one
call of a turn, {"name": …, "arguments": {…}} as text, or the whole text of a turn without calls. The observation that answers a
call becomes a message of the tool; that of a text becomes a message of the user. The reward of an episode is the sum of the
rewards of its steps, which the reward `environment` reads. `tools`, if the class has it, lists the schemas of its calls; a
record with a column `tools` has its own.

The info of a reset or a step may have "checks", which an evaluation reports: {name: whether it holds if the episode ends here;
None if it does not apply}.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.tasks.actions import ERROR
from data.tasks.service.world import ServiceDesk
from data.tasks.stockroom import Stockroom
from lm.errors import UserError
from lm.files.user_files import failing, from_file
from lm.infer.calls import MAX, Answer
from lm.parallel.hosts import from_first


class Environment(Protocol):
    """What an episode needs of an environment. gymnasium.Env has these methods."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]: ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]: ...


Make = Callable[[], Environment]
Checks = Mapping[str, bool | None]
KEY = "rollout.environment"  # of the configs of align.py
ENVIRONMENTS: dict[str, Make] = {"stockroom": Stockroom, "service": ServiceDesk}


class Observed(NamedTuple):
    """What followed a turn. answers: one a call, or one to a text. over: whether the episode has ended. total: its reward.

    checks: those of the last step.
    """

    answers: list[Answer]
    over: bool
    total: float
    checks: Checks = {}


def open_environment(spec: str, key: str = KEY) -> Make | None:
    """Return a function that makes the environment of a config; None for "".

    spec: a key of ENVIRONMENTS, or FILE.py:CLASS. key: of the config, for errors. Raises: UserError that names what is wrong.
    """
    if not spec:
        return None
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        made = from_file(Path(path), name, key, "path/file.py:Class")
        if not all(callable(getattr(made, method, None)) for method in ("reset", "step")):
            raise UserError(f"{key}: {name} of {path} lacks the methods reset and step")
        return made
    if spec not in ENVIRONMENTS:
        raise UserError(f"{key}={spec!r} is none of {', '.join(ENVIRONMENTS)}; or write path/file.py:Class")
    return ENVIRONMENTS[spec]


class Episodes:
    """The environments of a batch, one an episode. They live in the first process; all processes get what they return.

    tasks: one an episode. An environment is seeded with its task's column `seed`, else 0, so that the rollouts of one prompt
    begin alike. key: of the config, for errors. begun: the checks of each after its reset.
    Raises: UserError if an environment fails, or begins with another observation than the task's prompt.
    """

    def __init__(self, make: Make, tasks: Sequence[Mapping[str, Any]], key: str = KEY):
        self._key = key
        self._worlds: list[Environment] = []
        self._checks: list[Checks] = []  # the last ones of each
        self._totals, self._over = [0.0] * len(tasks), [False] * len(tasks)
        self.begun = from_first(lambda: self._begin(make, tasks))

    def _begin(self, make: Make, tasks: Sequence[Mapping[str, Any]]) -> list[Checks]:
        for task in tasks:
            with failing(f"{self._key}: cannot be made"):
                world = make()
            record = copy.deepcopy({key: value for key, value in task.items() if key != "prompt_ids"})  # it may change its own
            with failing(f"{self._key}: column seed of its task"):
                seed = int(task.get("seed") or 0)
            with failing(f"{self._key}: reset"):
                found = world.reset(seed=seed, options=record)
            first = self._text("reset", found[0] if isinstance(found, tuple) and found else found)
            if first and first != (asked := task["prompt"][-1]["content"]):
                raise UserError(
                    f"{self._key} begins with {first[:60]!r}, and the prompt of its task is {asked[:60]!r}: write the "
                    "tasks with the same environment, and the seed of each as its column `seed`"
                )
            self._worlds.append(world)
            with failing(f"{self._key}: checks of reset"):
                self._checks.append(_checks(found[-1] if isinstance(found, tuple) and found else None))
        return [*self._checks]

    def step(self, turns: Mapping[int, Sequence[Mapping[str, Any] | str] | str]) -> dict[int, Observed]:
        """Act in some rollouts. turns: index of a rollout -> its calls (a text is the error of a broken one), or its text."""
        return from_first(lambda: {i: self._stepped(i, turn) for i, turn in turns.items()})

    def _stepped(self, i: int, turn: Sequence[Mapping[str, Any] | str] | str) -> Observed:
        answers = []
        for action in [turn] if isinstance(turn, str) else turn:
            broken = isinstance(action, str) and action is not turn
            if self._over[i] or broken:
                answers.append(Answer(f"{ERROR}{action if broken else 'the episode is over'}"[:MAX], True))
                continue
            text = action if isinstance(action, str) else json.dumps(action, ensure_ascii=False)
            with failing(f"{self._key}: step"):
                found = self._worlds[i].step(text)
            try:
                observation, reward, terminated, truncated, info = found
                reward = float(reward)
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"{self._key}: step must return five values, not {repr(found)[:80]}") from None
            if not math.isfinite(reward):
                raise UserError(f"{self._key}: step returned the reward {reward}, which is not finite")
            observation = self._text("step", observation)
            self._totals[i] += reward
            with failing(f"{self._key}: what step returned"):
                self._checks[i], self._over[i] = _checks(info), bool(terminated or truncated)
            answers.append(Answer(observation, observation.startswith(ERROR)))
        return Observed(answers, self._over[i], self._totals[i], self._checks[i])

    def _text(self, method: str, observation: Any) -> str:
        if not isinstance(observation, str):
            raise UserError(f"{self._key}: {method} must return a text as its observation, not {repr(observation)[:80]}")
        return observation


def _checks(info: Any) -> Checks:
    checks = info.get("checks") if isinstance(info, Mapping) else None
    return (
        {str(name): None if holds is None else bool(holds) for name, holds in checks.items()}
        if isinstance(checks, Mapping)
        else {}
    )
