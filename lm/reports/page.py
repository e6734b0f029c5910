"""Shared parts of all report pages: frame, number formats, machine info, and atomic file writes.

A page needs no network. Curves are inline SVG (lm/reports/charts.py), bars are CSS, and both follow the reader's light or dark
theme. No script runs, except in browse.html and items.html. Templates extend templates/page.html.j2.
"""

import functools
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import jinja2

from lm.bucket.places import as_urls
from lm.files import saving

DIRECTIONS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # a page keeps line breaks and tabs
BLANK = re.compile(r"(?<![\w/.-])[A-Z]{3,}")  # a word in a command that stands for what only the user can name


@functools.cache
def environment() -> jinja2.Environment:
    """Return what reads and keeps the files in templates/, which takes longer to compile than to fill."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    made.filters |= FILTERS
    return made


def render(template: str, report: dict, **context) -> str:
    """Return the page of a file in templates/."""
    config, changed = flatten(report.get("config") or {}), (report.get("provenance") or {}).get("changed")
    parts = {"changed": config} if changed is None else {"changed": {key: config[key] for key in changed if key in config}}
    parts["usual"] = {key: value for key, value in config.items() if key not in parts["changed"]}
    parts["blanks"] = any(BLANK.search(step["command"]) for step in report.get("next") or ())
    return as_urls(environment().get_template(template).render(report=report, **parts, **context))


def visible(value: object) -> object:
    """Return a text whose characters that turn the direction of others are spelt out; any other value as it is."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return DIRECTIONS.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return value


def flatten(config: Mapping, prefix: str = "") -> dict[str, str]:
    """Return a nested config as {"a.b.c": JSON of the value}, with the names that `--config.a.b.c=` takes."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def encoded(value: object) -> str:
    """Return JSON without "<", so that no text in it ends or opens an HTML element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def number(value: float, digits: int = 3) -> str:
    """Return whole numbers in full with thousands separators, and others with `digits` significant digits."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if isinstance(value, float) and abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def count(n: int, what: str) -> str:
    """Return a number of things.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{number(n)} {what}{'s' * (n != 1)}"


def short(value: float, digits: int = 4) -> str:
    """Return a number with `digits` digits and a unit of count: 3.277B, 1.5M, 20k, 0.003, 1e-05."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def arguments(command: str) -> list[str]:
    """Return the arguments of a shell command, each quoted as a shell needs it.

    >>> arguments("python -m lm.chat --system='Be brief.'")
    ['python', '-m', 'lm.chat', "'--system=Be brief.'"]
    """
    try:
        return [shlex.quote(argument) for argument in shlex.split(command)]
    except ValueError:  # of a report that was edited
        return [command]


def date(time: str) -> str:
    """Return an ISO time for readers.

    >>> date("2026-11-28T03:40:12Z")
    '2026-11-28 03:40 UTC'
    """
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?Z$", r"\1 \2 UTC", time)


def duration(seconds: float) -> str:
    """Return a duration as text: 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def save(workdir: Path, report: Mapping, page: str) -> None:
    """Write report.json and report.html into the workdir, each atomically; `report` holds plain values (lm/files/saving.py)."""
    content = as_urls(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    for name, text in (("report.json", content), ("report.html", page)):
        saving.write(workdir / name, text.encode(errors="backslashreplace"))  # answers may hold halves of surrogate pairs


FILTERS = {filter.__name__: filter for filter in (number, short, duration, date, arguments, visible)}  # of all templates
