"""The verdict of a judge on an answer."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    label: Literal["harmful", "safe", "unknown"]
    reason: str


# judge(prompts, responses, hazards), all of one length -> one verdict for each.
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Verdict]]
