"""Read the program that XLA's TPU compiler made: its instructions in the order of the schedule, and how often each runs.

The compiler writes `estimated_cycles` on what it fuses. It writes none on collectives and on Pallas kernels.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_LINE = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_SHAPE = re.compile(r"\b[a-z]+(\d*)(?:e\dm\d\w*)?\[([\d,]*)\]")  # such as bf16[8,128] and f8e4m3fn[8]


class Instruction(NamedTuple):
    """shape, text: as printed; text: everything after the opening bracket. cycles: 0 if the compiler gives no estimate."""

    name: str
    kind: str
    shape: str
    text: str
    cycles: int
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%[\w.\-]+", self.text.split("), ")[0])

    def called(self, key: str) -> str:
        """Return the computation that the instruction calls as `key` (calls, body, condition), "" if there is none."""
        found = re.search(rf"\b{key}=(%[\w.\-]+)", self.text)
        return found.group(1) if found else ""


class Program:
    """The computations of a compiled program's text (jax.stages.Compiled.as_text)."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        name = ""
        for line in _lines(text):
            if line.endswith("{") and not line.startswith(" ") and (header := re.match(r"(ENTRY )?(%[\w.\-]+)", line)):
                name = header.group(2)
                self.computations[name] = []
                if header.group(1):
                    self.entry = name
            elif name and (found := _LINE.match(line)):
                cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
                root, instruction, shape, kind, rest = found.groups()
                self.computations[name].append(
                    Instruction(instruction, kind, shape, rest, int(cycles.group(1)) if cycles else 0, bool(root))
                )

    def schedule(self, name: str | None = None, times: int = 1) -> Iterator[tuple[int, str, list[Instruction]]]:
        """Yield (how often it runs, name, instructions) of the entry and of each computation that runs as a loop's body or a
        branch. Of the branches of a condition the one with the most cycles counts."""
        name = name or self.entry
        yield times, name, self.computations[name]
        for one in self.computations[name]:
            if one.kind == "while":
                yield from self.schedule(one.called("body"), times * self.trips(one))
            elif one.kind == "call":
                yield from self.schedule(one.called("to_apply"), times)
            elif one.kind == "conditional":
                names = [one.called(f"{side}_computation") for side in ("true", "false")]
                if branches := re.search(r"branch_computations=\{(.*?)\}", one.text):
                    names = branches.group(1).split(", ")
                yield from self.schedule(max(names, key=self.cycles), times)

    def cycles(self, name: str | None = None) -> int:
        """Return the compiler's estimate for a computation, default the whole program, without what it does not estimate."""
        return sum(times * sum(one.cycles for one in instructions) for times, _, instructions in self.schedule(name))

    def trips(self, loop: Instruction) -> int:
        """Return how often a `while` runs: from 0 to a constant of its condition, by the step of its body. 1 if unknown.

        0 if the end is computed: then it is the loop over further rounds of experts, which an even routing does not have.
        """
        condition = {one.name: one for one in self.computations[loop.called("condition")]}
        compare = next((one for one in condition.values() if one.root), None)
        state = {name for name, one in condition.items() if one.kind == "get-tuple-element"}
        if compare is not None and len(compare.operands) > 1 and state.issuperset(compare.operands):
            return 0
        if compare is not None and compare.kind == "fusion":
            bounds = [int(n) for one in condition.values() if one.kind == "constant" for n in re.findall(r"^(\d+)\)", one.text)]
            return max(bounds, default=1)
        if compare is None or compare.kind != "compare":
            return 1
        bound: int | None = None
        index: int | None = None
        for operand in compare.operands:
            one = condition[operand]
            if one.kind == "constant":
                bound = _first_number(one.text)
            elif one.kind == "get-tuple-element":
                index = _first_number(one.text.partition("index=")[2])
        if bound is None:
            return 1
        return -(-bound // self._step(loop.called("body"), index)) if index is not None else bound

    def _step(self, body: str, index: int) -> int:
        """Return what a body adds to its counter, element `index` of its tuple."""
        by_name = {one.name: one for one in self.computations[body]}
        root = next(one for one in by_name.values() if one.root)
        value, step = by_name.get(root.operands[index]), 0
        while value is not None and value.kind == "add":
            left, right = (by_name.get(operand) for operand in value.operands[:2])
            constant, other = (left, right) if left is not None and left.kind == "constant" else (right, left)
            if constant is None or constant.kind != "constant":
                return max(1, step)
            step += _first_number(constant.text)
            value = other
        return max(1, step)


def _first_number(text: str) -> int:
    return int(re.findall(r"\d+", text)[0])


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a program's text, each instruction as one: metadata of kernels may have line breaks."""
    held = ""
    for line in text.splitlines():
        if line == "}" or line.startswith(("  %", "  ROOT ", "%", "ENTRY ")) or not line:
            yield held
            held = line
        else:
            held += line
    yield held


def bytes_of(shape: str) -> int:
    """Return the bytes of a printed shape; of a tuple, of all its elements."""
    total = 0
    for bits, sizes in _SHAPE.findall(shape):
        width = max(1, int(bits) // 8) if bits else 1  # pred has none
        total += width * math.prod(map(int, filter(None, sizes.split(","))))
    return total
