"""What the load generator knows of a run by itself, and how the server's counters must look."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.serving.load import Outcome
from benchmarks.serving.server import Metrics, total

OWN = ("/metrics", "/health", "/ready")  # routes that the generator itself asks
BROKEN = ("500", "502", "504")  # the server's own faults, which no client may cause
UNREAD = 128  # tokens that a server may have sampled for a client before it notices that this one has left


@dataclasses.dataclass(frozen=True)
class Check:
    """`found` must be in low … high."""

    name: str
    found: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        return self.low <= self.found <= self.high

    def __str__(self) -> str:
        wanted = f"{self.low:g}" if self.low == self.high else f"{self.low:g} … {self.high:g}"
        return f"{'ok  ' if self.ok else 'BAD '} {self.name}: {self.found:g} (wanted {wanted})"


class Truth:
    """Counts of outcomes, beside a server's own. A client that leaves makes some of these uncertain: they have bounds then.

    wrong: what was not as it should be, in words. markers: of all prompts, so that they are found in the answers of others.
    """

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()  # that were received
        self.unanswered = 0  # requests whose client left before a status came
        self.kinds: Counter[str] = Counter()
        self.finishes: Counter[str] = Counter()  # of choices that were received to their end
        self.left = self.left_early = 0  # clients that left, after and before they had a status
        self.slow = 0  # slow readers that the server has left; whether it had sampled all tokens is not known
        self.refused = 0  # choices but one of refused requests: a full queue may have had room for some of them
        self.prompt_tokens = self.answer_tokens = 0  # of requests that were received to their end
        self.part_tokens = 0  # received in answers that have no end
        self.wrong: list[str] = []
        self.markers: set[str] = set()

    def add(self, one: Outcome) -> None:
        ask = one.ask
        self.kinds[ask.kind] += 1
        if one.status:
            self.statuses[one.status] += 1
        else:
            self.unanswered += 1
        if one.status not in ask.expected and not (one.left and not one.status):
            expected = ", ".join(map(str, sorted(ask.expected)))
            self.wrong.append(f"{ask.kind}: status {one.status} instead of {expected}: {one.error[:300]}")
        if one.whole:
            self.finishes.update(one.finishes.values())
            self.prompt_tokens += one.prompt_tokens
            self.answer_tokens += one.answer_tokens
            if one.answer_tokens > ask.most * len(one.finishes) and ask.most:
                self.wrong.append(f"{ask.kind}: {one.answer_tokens} tokens instead of at most {ask.most}")
        elif one.status in (429, 503):
            self.refused += ask.choices - 1
        elif one.status == 200:
            self.part_tokens += one.answer_tokens
            if ask.pause:
                self.slow += 1
            elif one.left:
                self.left += 1
            elif 200 in ask.expected:
                self.wrong.append(f"{ask.kind}: the answer broke off: {one.error[:300]}")
        elif not one.status and not ask.half:
            self.left_early += 1

    def foreign(self, one: Outcome) -> list[str]:
        """Return the markers of other requests in an answer."""
        text = " ".join(one.texts.values())
        return [word for word in re.findall(r"[a-z]{8}", text) if word in self.markers and word not in one.ask.prompt]

    def against(self, before: Metrics, after: Metrics) -> list[Check]:
        """Return how the growth of the server's counters must be. Metrics that the server does not have are left out."""
        names = {name for name, _ in after}

        def grown(name: str, **labels: str) -> float:
            return total(after, name, **labels) - total(before, name, **labels)

        checks = []
        if "http_requests_total" in names:
            statuses = {dict(labels)["status"] for name, labels in after if name == "http_requests_total"}
            for status in sorted(statuses | {str(status) for status in self.statuses}):
                found, known = grown("http_requests_total", status=status), self.statuses[int(status)]
                found -= sum(grown("http_requests_total", status=status, route=route) for route in OWN)
                most = known if status in BROKEN else known + self.unanswered
                checks.append(Check(f"requests with status {status}", found, known, most))
        if "request_success_total" in names:
            for finish in ("stop", "length"):
                found, known = grown("request_success_total", finished_reason=finish), self.finishes[finish]
                checks.append(Check(f"answers finished by {finish}", found, known, known + self.slow))
            found = sum(grown("request_success_total", finished_reason=finish) for finish in ("cancelled", "timeout", "abort"))
            most = self.left + self.left_early + self.slow + self.refused
            checks.append(Check("answers cancelled", found, self.left, most))
        if "generation_tokens_total" in names:
            known, open_ends = self.answer_tokens + self.part_tokens, self.left + self.left_early + self.slow
            checks.append(Check("sampled tokens", grown("generation_tokens_total"), known, known + UNREAD * open_ends))
        return checks


def idle(metrics: Metrics) -> list[Check]:
    """Return that nothing runs, waits, or holds blocks."""
    names = {name for name, _ in metrics}
    wanted = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return [Check(name, total(metrics, name), 0, 0) for name in wanted if name in names]


def memory(low: float, high: float, share: float, least: int) -> Check:
    """Return that memory has not grown by more than a share, or so many bytes if that is more."""
    most = max(low * (1 + share), low + least)
    return Check("resident memory, MiB", round(high / 2**20), 0, round(most / 2**20))


def failures(checks: Iterable[Check], wrong: Sequence[str]) -> int:
    return sum(not check.ok for check in checks) + len(wrong)
