"""The curves of a run: all metrics of its metrics.jsonl in groups, with held-out curves beside those of training."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from lm.align.alarms import is_validation
from lm.reports.charts import LINES, MARKERS, MUTED, SERIES, VALID, dots, from_zero, held_out, legend, svg
from lm.reports.metric_groups import FOLDED, GROUPS, LEFT_OUT, LOSSES, SCHEDULE, Group, group_of, matches
from lm.reports.run_metrics import thin, trend
from lm.train.history import Curve, column


def curves(lines: Sequence[dict], method: str | None = None, baselines: Mapping[str, float] = {}) -> list[dict]:
    """Return charts of all metrics in the lines: [{title, note, svg}]. Held-out and training curves share a chart.

    Args: method: names what the loss is. baselines: bits per byte by name, drawn as lines.
    """
    train = [line for line in lines if not is_validation(line)]
    keys = dict.fromkeys(key for line in train for key in line)
    valid = [{_twin(key, keys): x for key, x in line.items()} for line in lines if is_validation(line)]
    keys |= dict.fromkeys(key.removeprefix("valid_") for line in valid for key in line)
    drawn = [key for key in keys if len(column(train, key)[0]) or len(column(valid, f"valid_{key}")[0])]
    drawn = [key for key in drawn if not matches(key, LEFT_OUT)]
    others = [f"{key.rpartition('/')[0]}/*" if "/" in key else key for key in drawn if group_of(key) is None]
    charts, taken, tokens = [], set(), column(train, "tokens")
    for group in (*GROUPS, *(Group("", "", "", (pattern,)) for pattern in dict.fromkeys(others))):
        members = [key for key in drawn if key not in taken and matches(key, group.patterns)]
        taken |= set(members)
        for begin in range(0, len(members), len(SERIES)):  # one chart has only that many colours
            part = members[begin : begin + len(SERIES)]
            note, unit = LOSSES.get(method, group[1:3]) if part == ["loss"] else group[1:3]
            marks = baselines if part == ["bits_per_byte"] else {}
            peak, top = _cut_off(column(train, "loss"), column(valid, "valid_loss")) if part == ["loss"] else (None, None)
            title = group.title or (part[0].replace("_", " ") if len(part) == 1 else part[0].rpartition("/")[0])
            trained = any(len(column(train, key)[0]) for key in part)
            note = (note or "as logged") if trained or part[0].startswith("bits_per_byte") else "of held-out examples"
            note += "; dashed lines: n-gram baselines" if marks else ""
            note += f"; the frame cuts off a peak of {peak:.3g}" if top is not None else ""
            unit = unit or (title if len(part) == 1 else "value")

            def draw(ax: Axes, part=part, marks=marks, top=top) -> None:
                _draw(ax, part, train, valid)
                for baseline, value in marks.items():
                    ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
                    ax.annotate(f"{baseline} {value:.3f}", (1, value), (-3, 3), color=MUTED, **where)
                    ax.margins(y=0.1)
                ax.set_ylim(top=top)

            picture = svg(f"chart{len(charts)}", draw, tokens, unit=unit)
            charts.append({"title": title, "note": note, "svg": picture, "folded": title in FOLDED})
    return charts


def _twin(key: str, trained: Iterable[str]) -> str:
    """Return a validation key with the name of its training metric: valid_rewards/answer matches rewards/answer/mean."""
    name = key.removeprefix("valid_")
    other = next((twin for twin in (f"{name}/mean", f"completions/{name}") if twin in trained), name)
    return key if key == name else f"valid_{name if name in trained else other}"


def _cut_off(train: Curve, valid: Curve) -> tuple[float, float | None]:
    """Return (the greatest loss, the top of its chart, or None to show all).

    The fall from ln(vocabulary) in the first steps would flatten the rest.
    """
    lines = [trend(*train)[1]] * bool(len(train[0])) + [valid[1]] * bool(len(valid[0]))
    later = np.concatenate([line[len(line) // 20 :] for line in lines])
    peak, top = max(values.max() for values in (train[1], valid[1]) if len(values)), later.max() + 0.1 * np.ptp(later)
    return float(peak), float(top) if peak > max(top, 1.3 * top) else None


def _draw(ax: Axes, keys: Sequence[str], train: Sequence[dict], valid: Sequence[dict]) -> None:
    for key, colour, line, marker in zip(keys, SERIES, LINES, MARKERS):
        name = key.partition("/")[2] or key
        label = "train" if len(keys) == 1 else name.removesuffix("/mean") if key.startswith("rewards/") else name
        steps, values = column(train, key)
        noisy = len(steps) > 50 and not matches(key, SCHEDULE)
        if noisy:
            ax.plot(*thin(steps, values), color=colour, alpha=0.3, linewidth=0.8)
        if len(steps):
            shown = trend(steps, values) if noisy else thin(steps, values)
            ax.plot(*shown, color=colour, linestyle=line, linewidth=1.8, label=label, **dots((steps, values), marker))
        if key == "reward":
            both = [row for row in train if len(column([row], key)[0]) and len(column([row], "reward_std")[0])]
            (steps, values), (_, spread) = column(both, key), column(both, "reward_std")
            ax.fill_between(steps, values - spread, values + spread, color=colour, alpha=0.12, linewidth=0)
        other = column(valid, f"valid_{key}")
        if len(other[0]):
            style = {"color": VALID, "linestyle": LINES[1], "label": "held out"}
            if len(keys) > 1:
                style = {"color": colour, "linestyle": line, "label": f"{label}, held out"}
            curve = thin(*other)
            ax.plot(*curve, linewidth=1.4, **style, **held_out(curve))
    low, high = ax.dataLim.intervaly
    if keys == ["grad_norm"] and low > 0 and high > 10 * low:
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    elif keys not in (["loss"], ["bits_per_byte"]):
        from_zero(ax)
    legend(ax)
