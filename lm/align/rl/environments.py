"""Environments: stateful worlds in which a policy acts in rollouts, with the interface of gymnasium and texts on both sides.

An environment is a class without arguments; each rollout has its own object:

    reset(seed=…, options=record) -> (observation, info)
    step(action) -> (observation, reward, terminated, truncated, info)

options: the record of the rollout's task, with all its columns. The first observation is the task's prompt. An action is one
call of a turn, {"name": …, "arguments": {…}} as text, or the whole text of a turn without calls. The observation that answers a
call becomes a message of the tool; that of a text becomes a message of the user. The reward of a rollout is the sum of the
rewards of its steps, which the reward `environment` reads. `tools`, if the class has it, lists the schemas of its calls.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.tasks.stockroom import look_up
from lm.align.rl.answers import final_answer, same_answer
from lm.align.rl.calculator import calculate
from lm.align.rl.tools import ERROR, MAX, Answer, Tool, open_tools
from lm.errors import UserError
from lm.files.user_files import failing, from_file
from lm.parallel.hosts import from_first


class Environment(Protocol):
    """What a rollout needs of an environment. gymnasium.Env has these methods."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]: ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]: ...


class Stockroom:
    """The environment of the built-in task `stockroom` (data/tasks/stockroom.py).

    An episode: calls of look_up and calculator, and at last an answer, which ends it. Its reward is 1 if it is right.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict]:
        """Begin with the question of a record. options: a record of data/tasks/stockroom.py."""
        self._record = options or {}
        prompt = self._record["prompt"]
        return prompt if isinstance(prompt, str) else prompt[-1]["content"], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """Take a call, {"name": …, "arguments": {…}}, or any other text as the answer."""
        call = _call(action)
        if call is None:
            right = same_answer(final_answer(action), final_answer(self._record["answer"]))
            return "", float(right), True, False, {}
        try:
            return self._answered(call["name"], call["arguments"]), 0.0, False, False, {}
        except (TypeError, ValueError) as error:
            return f"{ERROR}{error}", 0.0, False, False, {}

    def _answered(self, name: str, arguments: dict[str, Any]) -> str:
        if name == "look_up":
            return look_up(self._record["tables"], **arguments)
        if name == "calculator":
            return calculate(**arguments)
        raise ValueError(f"there is no tool {name!r}, only look_up, calculator")


def _call(action: str) -> dict[str, Any] | None:
    try:
        call = json.loads(action)
    except ValueError:
        return None
    return call if isinstance(call, dict) and "name" in call and "arguments" in call else None


Make = Callable[[], Environment]
ENVIRONMENTS: dict[str, Make] = {"stockroom": Stockroom}


class Observed(NamedTuple):
    """What followed a turn. answers: one a call, or one to a text. over: whether the episode has ended. total: its reward."""

    answers: list[Answer]
    over: bool
    total: float


class Surroundings(NamedTuple):
    """What answers the turns of a policy: tools, or else an environment, of which each rollout makes its own."""

    tools: Sequence[Tool] = ()
    environment: Make | None = None

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """The schemas of the calls that a policy can make."""
        return [tool.schema for tool in self.tools] or getattr(self.environment, "tools", None)


def open_surroundings(rollout) -> Surroundings:
    """Return the tools and the environment of config.rollout. Raises: UserError for an unknown one."""
    return Surroundings(open_tools(rollout.tools), open_environment(rollout.environment))


def open_environment(spec: str) -> Make | None:
    """Return a function that makes the environment of config.rollout.environment; None for "".

    spec: a key of ENVIRONMENTS, or FILE.py:CLASS. Raises: UserError that names what is wrong.
    """
    if not spec:
        return None
    path, _, name = spec.rpartition(":")
    if path.endswith(".py"):
        made = from_file(Path(path), name, "rollout.environment", "path/file.py:Class")
        if not all(callable(getattr(made, method, None)) for method in ("reset", "step")):
            raise UserError(f"rollout.environment: {name} of {path} lacks the methods reset and step")
        return made
    if spec not in ENVIRONMENTS:
        raise UserError(f"rollout.environment={spec!r} is none of {', '.join(ENVIRONMENTS)}; or write path/file.py:Class")
    return ENVIRONMENTS[spec]


class Episodes:
    """The environments of a batch, one a rollout. They live in the first process; all processes get what they return.

    tasks: one a rollout. An environment is seeded with its task's column `seed`, else 0, so that the rollouts of one prompt
    begin alike. Raises: UserError if an environment fails, or begins with another observation than the task's prompt.
    """

    def __init__(self, make: Make, tasks: Sequence[Mapping[str, Any]]):
        self._worlds: list[Environment] = []
        self._totals, self._over = [0.0] * len(tasks), [False] * len(tasks)
        from_first(lambda: self._begin(make, tasks))

    def _begin(self, make: Make, tasks: Sequence[Mapping[str, Any]]) -> None:
        for task in tasks:
            with failing("rollout.environment: cannot be made"):
                world = make()
            record = {key: value for key, value in task.items() if key != "prompt_ids"}
            seed = int(task.get("seed") or 0)
            with failing("rollout.environment: reset"):
                found = world.reset(seed=seed, options=record)
            first = _text("reset", found[0] if isinstance(found, tuple) and found else found)
            if first and first != (asked := task["prompt"][-1]["content"]):
                raise UserError(
                    f"rollout.environment begins with {first[:60]!r}, and the prompt of its task is {asked[:60]!r}: write the "
                    "tasks with the same environment, and the seed of each as its column `seed`"
                )
            self._worlds.append(world)

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
            with failing("rollout.environment: step"):
                found = self._worlds[i].step(text)
            try:
                observation, reward, terminated, truncated, _ = found
                reward = float(reward)
            except (TypeError, ValueError):
                raise UserError(f"rollout.environment: step must return five values, not {repr(found)[:80]}") from None
            if not math.isfinite(reward):
                raise UserError(f"rollout.environment: step returned the reward {reward}, which is not finite")
            observation = _text("step", observation)
            self._totals[i] += reward
            self._over[i] = bool(terminated or truncated)
            answers.append(Answer(observation, observation.startswith(ERROR)))
        return Observed(answers, self._over[i], self._totals[i])


def _text(method: str, observation: Any) -> str:
    if not isinstance(observation, str):
        raise UserError(f"rollout.environment: {method} must return a text as its observation, not {repr(observation)[:80]}")
    return observation
