"""The behaviour of one checkpoint with one adapter: its reference window, a detector for each stream, and alerts.

The first exchanges are the reference, unless one is given. From then on, every exchange feeds the detectors of
lm/serve/watch/martingale.py. With S streams, one alerts when its capital reaches S/α. So as long as behaviour and traffic do
not change, the probability that any of them ever alerts is at most α (Ville's inequality and the union bound), however long
the server runs and however often it restarts. The state is on disk.

"No change" means that exchanges are exchangeable with those of the reference. Traffic that follows the time of day, or one
client that asks the same thing a thousand times, is a change, and is meant to be one.

An alert stays until somebody accepts the new behaviour (`accept`); then a new reference is collected.
"""

import hashlib
import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.files import saving
from lm.serve.settings import WatchSettings
from lm.serve.watch import martingale
from lm.serve.watch import reference as windows
from lm.serve.watch.martingale import Detector
from lm.serve.watch.measures import REPETITIVE, Measures
from lm.serve.watch.reference import FITTED, RATES, SCALES, STREAMS, Reference

VERSION = 1  # of the state on disk
FEEDBACK = 100  # first ratings, which are the reference of that stream
LANGUAGES = 8  # most frequent languages that are shown
GAUGES = {"before": "behaviour_reference", "now": "behaviour_recent", "psi": "behaviour_psi", "evidence": "behaviour_evidence"}


class Alert(NamedTuple):
    """time: seconds since 1970. stream: one of STREAMS. text: one line. detail: figures, as JSON."""

    time: float
    checkpoint: str
    adapter: str
    stream: str
    text: str
    detail: Mapping[str, Any]


class Behaviour:
    """What is known of one checkpoint and adapter. Used by one thread at a time."""

    def __init__(self, checkpoint: str, adapter: str, settings: WatchSettings, given: Reference | None = None):
        """given: a reference window of an earlier run; None collects one. Of the settings `reference`, `recent` and `alpha`
        are used: exchanges of both windows, and the probability of any false alert of this checkpoint and adapter."""
        self.checkpoint, self.adapter, self.settings = checkpoint, adapter, settings
        self.exchanges = 0
        self.rows: list[Measures] = []  # of the reference, while it is collected
        self.reference: Reference | None = None
        self.calibration: dict[str, list[float]] = {}
        self.detectors: dict[str, Detector] = {}
        self.alerts: dict[str, Alert] = {}
        self.ratings: list[float] = []
        self.shown_languages: set[str] = set()
        self.recent: deque[tuple[Measures, dict[str, float]]] = deque(maxlen=settings.recent)
        self.recent_ratings: deque[float] = deque(maxlen=settings.recent)
        if given is not None:
            self._begin(given)

    @property
    def threshold(self) -> float:
        """The capital at which a stream alerts."""
        return len(STREAMS) / self.settings.alpha

    def add(self, measures: Measures) -> list[Alert]:
        """Take the measures of an exchange and return new alerts."""
        self.exchanges += 1
        if self.reference is None:
            self.rows.append(measures)
            if len(self.rows) >= self.settings.reference:
                self._begin(windows.fit(self.rows))
            return []
        values = self.reference.values(measures)
        self.recent.append((measures, values))
        found = [self._feed(name, value) for name, value in values.items()]
        return [alert for alert in found if alert]

    def add_rating(self, down: bool) -> list[Alert]:
        """Take a person's rating of an answer and return new alerts."""
        self.recent_ratings.append(float(down))
        if "feedback" in self.detectors:
            alert = self._feed("feedback", float(down))
            return [alert] if alert else []
        self.ratings.append(float(down))
        if len(self.ratings) >= FEEDBACK:
            self.detectors["feedback"] = Detector(self.ratings, _seed("feedback"))
        return []

    def accept(self) -> None:
        """Forget the reference and all alerts: what comes next is the new reference."""
        self.__init__(self.checkpoint, self.adapter, self.settings)

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return, by stream: before (mean of the reference), now (mean of the recent window), psi, evidence (log of the capital
        over log of the threshold: it alerts at 1), alert (0 or 1). Means are in the stream's own unit; of fitted streams they
        are surprises in nats. Streams without a detector are left out.
        """
        found = {}
        before = self.calibration | {"feedback": self.ratings}
        recent: dict[str, list[float]] = {name: [] for name in STREAMS}
        for _, values in self.recent:
            for name, value in values.items():
                recent[name].append(value)
        recent["feedback"] = list(self.recent_ratings)
        for name, detector in self.detectors.items():
            found[name] = {
                "before": _unit(name, _mean(before[name])),
                "now": _unit(name, _mean(recent[name])),
                "psi": windows.psi(before[name], recent[name]),
                "evidence": max(0.0, math.log(max(detector.capital, 1e-300)) / math.log(self.threshold)),
                "alert": float(name in self.alerts),
            }
        return found

    def languages(self) -> dict[str, float]:
        """Return the shares of the most frequent languages of recent answers; the rest is "other"."""
        counts = Counter(row.language for row in self._latest() if row.language)
        total, top = sum(counts.values()), dict(counts.most_common(LANGUAGES))
        shares = {name: count / total for name, count in top.items()}
        return shares | ({"other": 1 - sum(shares.values())} if len(counts) > len(top) else {})

    def rates(self) -> dict[str, float]:
        """Return shares of recent exchanges: refusal, unsafe, repetitive; and of recent ratings: feedback (thumbs down)."""
        rows = self._latest()
        found = {name: _mean([v for row in rows if (v := getattr(row, name)) is not None]) for name in ("refusal", "unsafe")}
        found["repetitive"] = _mean([float(row.repetition > REPETITIVE) for row in rows if row.repetition is not None])
        found["feedback"] = _mean(list(self.recent_ratings))
        return {name: value for name, value in found.items() if value is not None}

    def show(self, metrics) -> None:
        """Set all gauges of lm.serve.metrics.Metrics. What is unknown is NaN; a language that is gone has the share 0."""
        who = {"checkpoint": self.checkpoint, "adapter": self.adapter}
        for name, value in self.rates().items():
            metrics.of("behaviour_rate", **who, measure=name).set(value)
        languages = self.languages()
        self.shown_languages |= set(languages)
        for name in self.shown_languages:
            metrics.of("behaviour_language_share", **who, language=name).set(languages.get(name, 0.0))
        figures = self.figures()
        for stream in STREAMS:
            metrics.of("behaviour_alert", **who, stream=stream).set(float(stream in self.alerts))
            for key, metric in GAUGES.items():
                value = figures.get(stream, {}).get(key)
                metrics.of(metric, **who, stream=stream).set(math.nan if value is None else value)

    def save(self, folder: Path) -> None:
        """Write the reference once, and the state."""
        place = folder / slug(self.checkpoint, self.adapter)
        if self.reference is not None and not (place / "reference.json").exists():
            about = {"checkpoint": self.checkpoint, "adapter": self.adapter, "exchanges": len(self.reference.rows)}
            windows.save(place / "reference.json", self.reference.rows, about)
        elif self.reference is None:
            (place / "reference.json").unlink(missing_ok=True)
        state = {
            "version": VERSION,
            "checkpoint": self.checkpoint,
            "adapter": self.adapter,
            "exchanges": self.exchanges,
            "rows": windows.to_json(self.rows),
            "ratings": self.ratings,
            "recent": windows.to_json([row for row, _ in self.recent]),
            "recent_ratings": list(self.recent_ratings),
            "detectors": {name: detector.state() for name, detector in self.detectors.items()},
            "alerts": {name: alert._asdict() for name, alert in self.alerts.items()},
        }
        saving.write(place / "state.json", json.dumps(state) + "\n")

    def _begin(self, reference: Reference) -> None:
        self.reference, self.calibration, self.rows = reference, reference.calibration(), []
        for name, values in self.calibration.items():
            if name != "feedback" and values:
                self.detectors[name] = Detector(values, _seed(name))

    def _latest(self) -> list[Measures]:
        return [row for row, _ in self.recent] or self.rows

    def _feed(self, name: str, value: float) -> Alert | None:
        if name in self.alerts:
            return None
        if name not in self.detectors:  # it never applied in the reference window: the first value is new by itself
            self.detectors[name] = Detector((), _seed(name))
        detector = self.detectors[name]
        if detector.add(value) < self.threshold:
            return None
        figures = self.figures()[name]
        before, now = ("unknown" if figures[key] is None else f"{figures[key]:.3g}" for key in ("before", "now"))
        unit = "mean surprise in nats" if name in FITTED else "share" if name in RATES else "mean"
        window = f"{len(self.recent_ratings)} ratings" if name == "feedback" else f"{len(self.recent)} exchanges"
        text = (
            f"{name.replace('_', ' ')} of {self.checkpoint or 'the model'}{f' with {self.adapter}' if self.adapter else ''} "
            f"changed: {unit} {before} in the reference, {now} in the last {window}; evidence "
            f"{detector.capital:.3g} after {detector.seen} live values, alert at {self.threshold:.3g} "
            f"(any false alert: probability at most {self.settings.alpha:g})"
        )
        detail = figures | {"seen": detector.seen, "capital": detector.capital, "threshold": self.threshold}
        self.alerts[name] = Alert(time.time(), self.checkpoint, self.adapter, name, text, detail)
        return self.alerts[name]


def load(folder: Path, checkpoint: str, adapter: str, settings: WatchSettings, given: Reference | None = None) -> Behaviour:
    """Return the behaviour that `save` left, or a new one. A state of another version counts as none.

    Raises: UserError: the reference file is damaged.
    """
    place = folder / slug(checkpoint, adapter)
    behaviour = Behaviour(checkpoint, adapter, settings, given)
    try:
        state = json.loads((place / "state.json").read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            return behaviour
        detectors = {name: martingale.restored(one) for name, one in state["detectors"].items()}
        alerts = {name: Alert(**one) for name, one in state["alerts"].items()}
        rows, recent = windows.from_json(state["rows"]), windows.from_json(state["recent"])
        ratings, recent_ratings = list(map(float, state["ratings"])), list(map(float, state["recent_ratings"]))
        exchanges = int(state["exchanges"])
    except (OSError, ValueError, KeyError, TypeError):
        return behaviour
    if (place / "reference.json").exists():
        behaviour._begin(windows.load(place / "reference.json"))
    elif set(detectors) - {"feedback"}:
        return behaviour  # a reference was lost, so what is left of the state means nothing
    behaviour.exchanges, behaviour.rows, behaviour.ratings = exchanges, rows, ratings
    behaviour.detectors, behaviour.alerts = detectors, alerts
    if behaviour.reference is not None:
        behaviour.recent.extend((row, behaviour.reference.values(row)) for row in recent)
    behaviour.recent_ratings.extend(recent_ratings)
    return behaviour


def slug(checkpoint: str, adapter: str) -> str:
    """Return a folder name that is different for every checkpoint and adapter, and a plain name whatever they hold."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(checkpoint).name}{f'--{adapter}' if adapter else ''}").strip(".-")[:60]
    digest = hashlib.blake2b(f"{checkpoint}\0{adapter}".encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{plain or 'model'}-{digest}"


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None


def _unit(name: str, value: float | None) -> float | None:
    """Return a mean of scaled numbers in the stream's unit. Lengths come back as a geometric mean."""
    if value is None or name in RATES or name == "repetition":
        return value
    if name in ("length", "prompt_length"):
        return 2 ** (value * windows.LONGEST) - 1
    return value * (windows.MAX_NATS if name in SCALES else windows.MAX_SURPRISE)
