"""Bring the gauges of behaviour up to date."""

from collections.abc import Iterable

from lm.serve.watch.behaviour import Behaviour
from lm.serve.watch.reference import STREAMS

FIGURES = {"before": "behaviour_reference", "now": "behaviour_recent", "psi": "behaviour_psi", "evidence": "behaviour_evidence"}


def show(metrics, behaviours: Iterable[Behaviour]) -> None:
    """Set all gauges. metrics: lm.serve.metrics.Metrics. What is unknown is NaN; a language that is gone has the share 0."""
    for one in behaviours:
        who = {"checkpoint": one.checkpoint, "adapter": one.adapter}
        for name, value in one.rates().items():
            metrics.of("behaviour_rate", **who, measure=name).set(value)
        languages = one.languages()
        for name in {*languages, *one.shown_languages}:
            metrics.of("behaviour_language_share", **who, language=name).set(languages.get(name, 0.0))
        one.shown_languages |= set(languages)
        figures = one.figures()
        for stream in STREAMS:
            metrics.of("behaviour_alert", **who, stream=stream).set(float(stream in one.alerts))
            for key, metric in FIGURES.items():
                value = figures.get(stream, {}).get(key)
                metrics.of(metric, **who, stream=stream).set(float("nan") if value is None else value)
