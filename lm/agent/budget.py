"""The budget of an agent: turns, tokens of the model, and seconds."""

import dataclasses
import time
from collections.abc import Callable

from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """steps: turns of the model. tokens: those that it writes. seconds: of the whole run, with its tools."""

    steps: int = 16
    tokens: int = 4096
    seconds: float = 300.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise UserError(f"--{name}={value} must be above 0")


class Meter:
    """What is spent of a budget. clock: returns seconds; the time between two calls of it counts."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic):
        self.budget, self.clock = budget, clock
        self.steps = self.tokens = 0
        self._begin = clock()

    def seconds(self) -> float:
        return self.clock() - self._begin

    def seconds_left(self) -> float:
        return max(0.0, self.budget.seconds - self.seconds())

    def tokens_left(self) -> int:
        return max(0, self.budget.tokens - self.tokens)

    def spend(self, tokens: int) -> None:
        self.steps += 1
        self.tokens += tokens

    def spent(self) -> str:
        """Return what is used up: "steps", "tokens", "seconds" or ""."""
        if self.steps >= self.budget.steps:
            return "steps"
        if not self.tokens_left():
            return "tokens"
        return "" if self.seconds_left() else "seconds"
