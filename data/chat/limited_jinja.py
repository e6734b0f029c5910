"""Jinja for the templates of strangers: sandboxed, and stopped if a render takes too many steps, too long or too much memory.

A template can loop without end, double a text or a list at each step, or ask one operation for gigabytes ("{:999999999}"). No
single limit stops all of them. So a budget counts loop iterations and calls, and the thread's own time is checked at each of
them. It also counts what all values come to, and the size of each value is checked where it is made: before operations that can
make a value many times as long as their input, after all others.
"""

import contextvars
import functools
import math
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEPS, SIZE = 1 << 16, 1 << 18  # iterations and calls, characters and items, of a render with nothing to read
TIMES = 16  # so many more of both for each character and item that it reads
ALL = 64  # all values together may be so many times as large as one of them
SECONDS = 10.0  # of processor time
SOURCE = 1 << 20  # characters of a template
BITS, DIGITS, MARGIN = 4096, 64, 64  # of a whole number, of `round`, of JSON's indent and separators
# Filters whose time is not in proportion to their input, and which no chat template needs.
DROPPED = ("batch", "pprint", "slice", "striptags", "urlize", "wordwrap", "xmlattr")
COUNTED, JOINED, WEIGHED = "counted loop", "joined texts", "weighed literal"  # templates cannot write these names of filters


class TooMuch(jinja2.TemplateError):
    """A render was stopped by its limits."""


class _Budget:
    """What is left of the limits of one render."""

    def __init__(self, read: int):
        self.steps, self.size = STEPS + TIMES * read, SIZE + TIMES * read
        self._left = ALL * self.size
        self._until = time.thread_time() + SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TooMuch("it takes more steps than the limit")
        if time.thread_time() > self._until:
            raise TooMuch(f"it takes more than {SECONDS:g} s")

    def allow(self, size: float) -> None:
        if size > self.size:
            raise TooMuch("it writes more than the limit")

    def checked(self, value: Any) -> Any:
        """Return a new value. Raises TooMuch if it is too large."""
        if isinstance(value, int) and value.bit_length() > BITS:
            raise TooMuch("it computes with huge numbers")
        self.allow(weight(value, self.size))
        self._left -= len(value) if isinstance(value, str | bytes | Mapping | list | tuple) else 1
        self.allow(0 if self._left > 0 else math.inf)
        return value


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("budget")


def rendered(template: jinja2.Template, context: Mapping[str, Any]) -> str:
    """Render a template of a LimitedEnvironment. Raises: TooMuch, and what the template raises."""
    return _within(weight(context, math.inf), lambda: template.render(context))


def weight(value: Any, most: float) -> float:
    """Return the characters and items of a value, those of nested values as often as they occur.

    Stops above `most`, because nested references to one list double with each level.
    """
    total, todo = 0, [value]
    while todo and total <= most:
        one = todo.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            total += 2 * len(one)
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            total += len(one)
            todo += one
        else:
            total += 1
    return total


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment for `rendered`. `compiled` makes its templates, `add_filter` adds filters."""

    intercepted_binops = frozenset(("+", "-", "*", "//", "**", "%"))

    def __init__(self, **options: Any):
        super().__init__(**options)
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        for name in DROPPED:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        # Filters that the rewritten templates use.
        self.filters |= {COUNTED: _counted, JOINED: _joined, WEIGHED: lambda value: _budget.get().checked(value)}

    def add_filter(self, name: str, function: Callable) -> None:
        """Add a filter under the limits. Its time must be in proportion to its input."""
        self.filters[name] = _limited(name, function)

    def compiled(self, source: str) -> jinja2.Template:
        """Compile a template. Raises: jinja2.TemplateError if it is invalid."""
        if len(source) > SOURCE:
            raise TooMuch(f"a template of {len(source)} characters is longer than {SOURCE}")
        try:
            return _within(0, lambda: self.from_string(_Rewriter().visit(self.parse(source))))
        except (MemoryError, OverflowError, SyntaxError, ValueError) as error:  # from Python's own compiler
            raise jinja2.TemplateError(f"it cannot be compiled: {str(error)[:200]}") from None

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget.get()
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
                    budget.allow(weight(one, budget.size) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and abs(right) > BITS:
            raise TooMuch("it computes with huge numbers")
        elif operator == "%" and isinstance(left, str | bytes):
            budget.allow(_formatted(left, right))
        return budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        function = getattr(obj, "__wrapped__", obj)  # of the sandbox's own str.format
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str | bytes) and name in GROWING:
            owner, *args = _prepared(name, budget, (owner, *args), kwargs)
        elif isinstance(owner, int | str | bytes) and name in ("to_bytes", "translate"):
            raise TooMuch(f"it calls {name}")
        return budget.checked(super().call(context, obj, *args, **kwargs))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join what a template, a macro or a block writes."""
        budget, found, size = _budget.get(), [], 0
        for part in parts:
            size += len(part)
            budget.allow(size)
            found.append(part)
        return "".join(found)


class _Namespace(Namespace):
    """Jinja's namespace, whose text does not show its values: they may hold other namespaces, twice each."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Rewriter(NodeTransformer):
    """Count the iterations of loops, and check what `~` and literals make: Jinja has no hooks for these."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node = self.generic_visit(node)
        node.iter = _filter(node.iter, COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node = self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filter(self.generic_visit(node), WEIGHED)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        node = self.generic_visit(node)
        return _filter(node, WEIGHED) if node.ctx == "load" else node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _within(read: int, call: Callable[[], Any]) -> Any:
    token = _budget.set(_Budget(read))
    try:
        return call()
    except RecursionError:
        raise TooMuch("it is nested too deeply") from None
    finally:
        _budget.reset(token)


def _counted(items: Iterable) -> Iterator:
    budget = _budget.get()
    for item in items:
        budget.step()
        yield item


def _joined(parts: Sequence) -> str:
    budget = _budget.get()
    budget.allow(weight(parts, budget.size))
    return budget.checked("".join(map(str, parts)))


def _limited(name: str, function: Callable) -> Callable:
    before = int(hasattr(function, "jinja_pass_arg"))  # the environment or a context comes first

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        if name in GROWING or name in FILTERS:
            args = (*args[:before], *_prepared(name, budget, args[before:], kwargs, FILTERS))
        return budget.checked(function(*args, **kwargs))

    return limited


def _prepared(name: str, budget: _Budget, args: Sequence, kwargs: Mapping, bounds: Mapping | None = None) -> list:
    """Return the arguments of a growing operation, iterators as lists. Raises TooMuch if its result may be too long."""
    args = [list(_counted(arg)) if isinstance(arg, Iterator) else arg for arg in args]
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("_") and key != "caller"}  # Jinja's own
    budget.allow(((bounds or {}).get(name) or GROWING[name])(*args, **kwargs))
    return args


# Bounds of the results of operations that can make a value many times as long as their input. The first argument is the value.


def _replaced(text, old="", new="", *_, **__) -> float:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _filled(text, width=80, *_, **__) -> float:
    return width if isinstance(width, int) else 0


def _joined_by(separator, items=(), *_, **__) -> float:
    return weight(items, math.inf) + len(str(separator)) * len(items)


def _formatted(form, *args, **kwargs) -> float:
    """Bound the length of printf's and str.format's results: the fields may repeat the longest value, or name a width."""
    text = str(form)
    fields = text.count("%") + text.count("{")
    if re.search(r"\d{4}|\*", text) and fields:
        raise TooMuch("it formats with a width of thousands")
    for _, _, spec, _ in _fields(text):
        if spec and "{" in spec:
            raise TooMuch("it formats with a computed width")
    return len(text) + fields * (10_000 + weight([args, kwargs], math.inf))


def _fields(text: str) -> list:
    try:
        return list(string.Formatter().parse(text))
    except ValueError:  # not in this syntax
        return []


def _margin(width: int | str) -> int:
    return width if isinstance(width, int) else len(width)


def _json(value, ensure_ascii=False, indent=None, separators=None, *_, **__) -> float:
    if (isinstance(indent, int | str) and _margin(indent) > MARGIN) or any(len(s) > MARGIN for s in separators or ()):
        raise TooMuch("it writes JSON with a wide margin")
    items, depth = _shape(value) if indent is not None else (0, 0)
    return weight(value, math.inf) + items * depth * _margin(indent or 0)


def _shape(value: Any) -> tuple[int, int]:
    """Return (items, depth) of nested lists and mappings."""
    items, depth, todo = 0, 0, [(value, 1)]
    while todo:
        one, level = todo.pop()
        inner = list(one.values()) if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ()
        items, depth = items + len(inner), max(depth, level)
        todo += [(item, level + 1) for item in inner]
    return items, depth


def _summed(items, attribute=None, start=0) -> float:
    if not isinstance(start, int | float):
        raise TooMuch("it sums values that are no numbers")
    return 0


def _rounded(value, precision=0, *_) -> float:
    if abs(precision) > DIGITS:
        raise TooMuch("it rounds to too many digits")
    return 0


GROWING: dict[str, Callable[..., float]] = {  # methods of texts
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _filled),
    **dict.fromkeys(("format", "format_map"), _formatted),
    "expandtabs": lambda text, tabsize=8: len(text) * max(1, tabsize),
    "join": _joined_by,
    "replace": _replaced,
}
FILTERS: dict[str, Callable[..., float]] = {
    "center": _filled,
    "format": _formatted,
    "indent": lambda text, width=4, *_, **__: len(str(text)) + (str(text).count("\n") + 1) * _margin(width),
    "join": lambda items, d="", *_, **__: _joined_by(d, items if hasattr(items, "__len__") else list(items)),
    "replace": _replaced,
    "round": _rounded,
    "sum": _summed,
    "tojson": _json,
}
