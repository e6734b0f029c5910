"""What compiled programs do in their loops."""

import re
from collections.abc import Iterator

import jax

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def collectives_in_loops(compiled: jax.stages.Compiled) -> list[str]:
    """The collectives of a compiled program that loops, and loops within these, repeat: a line of it each."""
    computations, name = {}, None
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0]
            computations[name] = []
        elif name:
            computations[name].append(line)
    found, waiting = set(), [body for lines in computations.values() for body in bodies(lines)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            named = re.findall(r"%[\w.\-]+", "\n".join(computations[name]))
            waiting += [one for one in named if one in computations]
    lines = [line for name in sorted(found) for line in computations[name]]
    return [line for line in lines if re.search(rf" ({COLLECTIVES})(-start)?\(", line)]


def collectives(compiled: jax.stages.Compiled) -> list[str]:
    """All collectives of a compiled program, a line of it each."""
    return [line for line in compiled.as_text().splitlines() if re.search(rf" ({COLLECTIVES})(-start)?\(", line)]


def bodies(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield from re.findall(r" while\(.*body=(%[\w.\-]+)", line)


def scan_lengths(f, *args) -> list[int]:
    """How often each scan of a function turns, inner ones included."""
    return [int(length) for length in re.findall(r"\blength=(\d+)", str(jax.make_jaxpr(f)(*args)))]


def count_calls(lowered: str, name: str) -> int:
    """Return how many calls of a compiled function a program's text has."""
    return lowered.count(f"custom_call @{name}(")
