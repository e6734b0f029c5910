"""The environment of the built-in task `stockroom`: it answers look-ups and calculations, and rewards the right answer."""

import json
from typing import Any

from data.tasks.stockroom import look_up
from lm.align.rl.answers import final_answer, same_answer
from lm.align.rl.calculator import calculate

ERROR = "error: "


class Stockroom:
    """An episode: calls of look_up and calculator, and at last an answer, which ends it. Its reward is 1 if it is right."""

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
