"""Calls between two processes over two pipes, as plain data: a test in one calls a program in the other.

A message is its length (8 bytes, big-endian) and JSON. The first is the program's: true, it is loaded. Then each side may ask
["name", name], ["get", number, name], ["set", number, name, value], ["do", number, operation, args] or ["call", number, args,
kwargs]; the other side answers ["value", value, the arguments after the call, null for unchanged ones] or ["raised", names of
types, args], and may ask itself before it answers. So a test can pass its functions to the program.

Plain data arrives as a copy: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range, deque,
Decimal and Fraction; an object of a subclass arrives as one of these. Every other object stays where it is. The other side gets
a number for it, as a `Remote`, which is equal to no plain data and has no arithmetic and no order. Nothing is ever unpickled or
evaluated, so a message can at most be wrong. Standard library only.
"""

import builtins
import collections
import importlib
import json
import operator
import os
import sys
from collections.abc import Callable
from typing import Any

MAX = 32 << 20  # bytes of a message
SAFE = 1 << 53  # smaller integers are numbers of JSON, larger ones are written in hexadecimal, which has no limit of digits
SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
AS_TEXT = {"Decimal": "decimal", "Fraction": "fractions"}  # types that are written as text, and their modules
# What a process may do with an object of the other one: a function, and the type of its result. Each is a method of `Remote`.
OPERATIONS: dict[str, tuple[Callable, type]] = {
    "iter": (iter, object),
    "next": (next, object),
    "len": (len, int),
    "bool": (bool, bool),
    "str": (str, str),
    "repr": (repr, str),
    "getitem": (operator.getitem, object),
    "setitem": (operator.setitem, object),
    "delitem": (operator.delitem, object),
    "contains": (operator.contains, bool),
    "eq": (operator.eq, bool),  # of two objects of the same side
    "hash": (hash, int),
}


class Gone(BaseException):
    """The other process has ended, or has sent no message. No code of a test catches it by `except Exception`."""


class Peer:
    """The other process.

    read, write: file descriptors.
    namespace: the names that the other side may ask for. None: it is not trusted. It may then call the functions that it was
        given, and use objects of classes of __main__ that it was given, but not reach the globals of a function or a frame.
    gone: whether it has ended, or broken the rules. A test must look, since it may have caught Gone.
    """

    def __init__(self, read: int, write: int, namespace: dict[str, Any] | None):
        self.read, self.write, self.namespace, self.gone = read, write, namespace, False
        self.kept: list[Any] = []  # our objects for which the other side has a number

    def ready(self) -> None:
        """Tell the other side that the program is loaded."""
        self._send(True)

    def wait(self) -> None:
        """Wait until the other side is ready. Raises Gone."""
        if self._receive() is not True:
            raise self._lost()

    def serve(self) -> None:
        """Answer until the other side ends."""
        while True:
            self._answer(self._receive())

    def ask(self, *question: Any, given: tuple = ()) -> Any:
        """Return the other side's answer, and change `given`, the arguments of a call. Raises its exception, or Gone."""
        self._send(list(question))
        while True:
            message = self._receive()
            match message:
                case ["value", value, [*changed]]:
                    for arg, now in zip(given, changed):
                        if now is not None:
                            _become(arg, self.decode(now))
                    return self.decode(value)
                case ["raised", [*names], [*args]]:
                    raise _exception(names, self.decode(args))
            self._answer(message)

    def call(self, number: int, args: tuple, kwargs: dict) -> Any:
        """Call an object of the other side. Lists, dicts and sets among the arguments change as the call changes them."""
        return self.ask("call", number, [self.encode(arg) for arg in args], self.encode(kwargs)["dict"], given=args)

    def _answer(self, message: Any) -> None:
        try:
            value, changed = self._done(message)
            answer = ["value", self.encode(value), changed]
        except Gone:
            raise
        except BaseException as error:
            answer = ["raised", *self._raised(error)]
        self._send(answer)

    def _done(self, message: Any) -> tuple[Any, list]:
        """Return the answer to a question, and the arguments of a call that it has changed, None for the others."""
        match message:
            case ["name", str(name)] if self.namespace is not None:
                if name not in self.namespace:
                    raise NameError(f"name {name!r} is not defined")
                return self.namespace[name], []
            case ["get", int(number), str(name)] if self._may(number, name):
                return getattr(self.kept[number], name), []
            case ["set", int(number), str(name), value] if self._may(number, name, changes=True):
                return setattr(self.kept[number], name, self.decode(value)), []
            case ["do", int(number), str(name), [*args]] if name in OPERATIONS:
                return OPERATIONS[name][0](self.kept[number], *map(self.decode, args)), []
            case ["call", int(number), [*args], [*kwargs]]:
                given = [self.decode(arg) for arg in args]
                value = self.kept[number](*given, **{self.decode(key): self.decode(item) for key, item in kwargs})
                now = [self.encode(arg) if type(arg) in (list, dict, set) else None for arg in given]
                return value, [None if after == before else after for before, after in zip(args, now)]
        raise self._lost()

    def _may(self, number: int, name: str, changes: bool = False) -> bool:
        """Return whether the other side may read or change an attribute."""
        if self.namespace is not None:
            return True
        kind = type(self.kept[number])
        inside = kind.__module__ == "__main__" and not name.startswith("_")
        return inside and not (changes and callable(getattr(kind, name, None)))

    def _lost(self) -> Gone:
        self.gone = True
        return Gone()

    def _raised(self, error: BaseException) -> tuple[list[str], Any]:
        names = [kind.__name__ for kind in type(error).__mro__]
        try:
            return names, self.encode(list(error.args))
        except Exception:  # deeply nested, for example
            return names, []

    def encode(self, value: Any) -> Any:
        """Return a value as JSON."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            value = int(value)
            return value if -SAFE < value < SAFE else {"int": hex(value)}
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if isinstance(value, range):
            return {"range": [self.encode(n) for n in (value.start, value.stop, value.step)]}
        for name, kind in SEQUENCES.items():
            if isinstance(value, kind):
                return {name: [self.encode(item) for item in value]}
        kind = type(value).__name__
        if type(value).__module__ == AS_TEXT.get(kind, ""):
            return {kind: str(value)}
        if isinstance(value, Remote) and object.__getattribute__(value, "_peer") is self:
            return {"yours": object.__getattribute__(value, "_number")}
        self.kept.append(value)
        return {"mine": len(self.kept) - 1}

    def decode(self, value: Any) -> Any:
        """Return the value of `encode`. Raises an error of any kind, or Gone, if it is none."""
        if not isinstance(value, dict):
            return [self.decode(item) for item in value] if isinstance(value, list) else value
        ((kind, content),) = value.items()
        match kind:
            case "int":
                return int(content, 16)
            case "complex":
                return complex(*content)
            case "bytes":
                return bytes.fromhex(content)
            case "dict":
                return {self.decode(key): self.decode(item) for key, item in content}
            case "range":
                return range(*map(self.decode, content))
            case "mine":
                return Remote(self, content)
            case "yours":
                return self.kept[content]
        if kind in SEQUENCES:
            return SEQUENCES[kind](map(self.decode, content))
        if kind in AS_TEXT:
            return getattr(importlib.import_module(AS_TEXT[kind]), kind)(content)
        raise self._lost()

    def _send(self, message: Any) -> None:
        text = json.dumps(message).encode()
        left = memoryview(len(text).to_bytes(8, "big") + text)
        try:
            while left:
                left = left[os.write(self.write, left) :]
        except OSError:
            raise self._lost() from None

    def _receive(self) -> Any:
        size = int.from_bytes(self._bytes(8), "big")
        if size > MAX:
            raise self._lost()
        try:
            return json.loads(self._bytes(size))
        except (ValueError, RecursionError):
            raise self._lost() from None

    def _bytes(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            try:
                some = os.read(self.read, min(size - len(found), 1 << 20))
            except OSError:
                some = b""
            if not some:
                raise self._lost()
            found += some
        return bytes(found)


class Remote:
    """An object of the other process. Two of them are equal if their own side says so; nothing else is equal to one."""

    __slots__ = ("_peer", "_number")

    def __init__(self, peer: Peer, number: int):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.call(self._number, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self._number, name, self._peer.encode(value))

    def __reduce__(self) -> Any:
        raise TypeError("an object of another process cannot be copied")


def _method(operation: str) -> Callable:
    """Return the method of `Remote` for one of OPERATIONS."""
    kind = OPERATIONS[operation][1]

    def method(self, *args: Any) -> Any:
        if operation == "eq" and not isinstance(args[0], Remote):
            return False
        value = self._peer.ask("do", self._number, operation, [self._peer.encode(arg) for arg in args])
        if not isinstance(value, kind):
            raise TypeError(f"{operation} returned {type(value).__name__}")
        return value

    return method


for _operation in OPERATIONS:
    setattr(Remote, f"__{_operation}__", _method(_operation))


class Names(dict):
    """Global names of a test. One that is missing is Python's, else a module of the standard library, else the program's."""

    def __init__(self, peer: Peer):
        super().__init__(__name__="__main__")
        self._peer = peer

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        try:
            if name in sys.stdlib_module_names:
                return self.setdefault(name, importlib.import_module(name))
            return self.setdefault(name, self._peer.ask("name", name))
        except (ImportError, NameError):
            raise KeyError(name) from None


def _exception(names: list, args: Any) -> BaseException:
    """Return an exception of the first type in `names` that Python itself has, or of a new subclass of it with another name."""
    known = (getattr(builtins, name, None) for name in names if isinstance(name, str))
    base = next((kind for kind in known if isinstance(kind, type) and issubclass(kind, BaseException)), Exception)
    kind = base if names[:1] == [base.__name__] else type(str(names[0])[:80] if names else "Exception", (base,), {})
    try:
        return kind(*args)
    except TypeError:  # such as a UnicodeDecodeError, which needs five
        return Exception(*args)


def _become(value: Any, now: Any) -> None:
    """Give a list, dict or set the content of another one."""
    if type(value) is list and type(now) is list:
        value[:] = now
    elif type(value) in (dict, set) and type(now) is type(value):
        value.clear()
        value.update(now)
