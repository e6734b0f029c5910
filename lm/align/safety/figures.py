"""What a safety loop is measured by, and how much it changed."""

from collections.abc import Mapping, Sequence

# What the loop is for, of a side's figures: its name, where it stands, and how its change is told.
HEADLINES = (
    ("attack success, held-out families", ("attack_success", "held_out", "rate"), "relative"),
    ("attack success, families learnt from", ("attack_success", "train", "rate"), "relative"),
    ("over-refusal of harmless requests", ("over_refusal", "all", "rate"), "points"),
    ("task accuracy", ("accuracy", "rate"), "points"),
    ("bits per byte of held-out text", ("bits_per_byte", "bits_per_byte"), "relative"),
)


def headlines(figures: Mapping) -> dict[str, float]:
    """Those of HEADLINES that were measured."""
    return {name: value for name, path, _ in HEADLINES if (value := _at(figures, path)) is not None}


def change(before: Mapping, after: Mapping) -> dict[str, dict]:
    """{"before", "after", and "relative" ((after − before)/before) or "points" (percentage points)} by headline."""
    told = {}
    for name, path, kind in HEADLINES:
        first, last = _at(before, path), _at(after, path)
        if first is None or last is None:
            continue
        moved = 100 * (last - first) if kind == "points" else (last - first) / first if first else None
        told[name] = {"before": first, "after": last, kind: moved}
    return told


def _at(figures: Mapping, path: Sequence[str]) -> float | None:
    for key in path:
        if not figures or figures.get(key) is None:
            return None
        figures = figures[key]
    return figures
