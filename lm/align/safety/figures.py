"""Headline metrics of a safety loop, and their changes."""

from collections.abc import Mapping, Sequence

# (name, path in the figures, how its change is given).
HEADLINES = (
    ("attack success, held-out families", ("attack_success", "held_out", "rate"), "relative"),
    ("attack success, families learnt from", ("attack_success", "train", "rate"), "relative"),
    ("over-refusal of harmless requests", ("over_refusal", "all", "rate"), "points"),
    ("task accuracy", ("accuracy", "rate"), "points"),
    ("bits per byte of held-out text", ("bits_per_byte", "bits_per_byte"), "relative"),
)


def headlines(figures: Mapping) -> dict[str, float]:
    """Return the values of the measured HEADLINES by name."""
    return {name: value for name, path, _ in HEADLINES if (value := _at(figures, path)) is not None}


def change(before: Mapping, after: Mapping) -> dict[str, dict]:
    """Return by headline {"before", "after", and "relative" ((after − before)/before) or "points" (percentage points)}."""
    changes = {}
    for name, path, kind in HEADLINES:
        first, last = _at(before, path), _at(after, path)
        if first is None or last is None:
            continue
        moved = 100 * (last - first) if kind == "points" else (last - first) / first if first else None
        changes[name] = {"before": first, "after": last, kind: moved}
    return changes


def _at(figures: Mapping, path: Sequence[str]) -> float | None:
    for key in path:
        if not figures or figures.get(key) is None:
            return None
        figures = figures[key]
    return figures
