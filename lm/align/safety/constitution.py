"""Load a constitution: hazards for judging answers, principles for critique and revision, policies for serving."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lm.errors import UserError

SHIPPED = Path(__file__).parent / "constitution.yaml"


class Hazard(NamedTuple):
    id: str
    name: str
    definition: str


class Principle(NamedTuple):
    """A principle of the constitution.

    hazards: ids of the hazards that it applies to. critique, revision: requests to the model that criticises and rewrites.
    critiques, refusals: texts of the template reviser, formatted with the hazard's name.
    """

    id: str
    text: str
    hazards: tuple[str, ...]
    critique: str
    revision: str
    critiques: tuple[str, ...]
    refusals: tuple[str, ...]


class Policy(NamedTuple):
    """A rule of the server's guardrails (lm/serve/guardrails.py). It finds spans by patterns, personal data or a classifier.

    hazard: id of a hazard, or "". where: of WHERE. action: of ACTIONS.
    patterns: regular expressions, matched without regard to case. Each matches a bounded number of characters.
    pii: kinds of personal data of data/filters/pii/masking.py. classifier: folder of data/filters/classifier whose "good" texts
      are the harmless ones, or ""; it finds the stretches whose probability of harm is at least `threshold`.
    message: what is said instead of a blocked text; "": a refusal of a principle.
    """

    id: str
    hazard: str = ""
    where: str = "both"
    action: str = "flag"
    patterns: tuple[str, ...] = ()
    pii: tuple[str, ...] = ()
    classifier: str = ""
    threshold: float = 0.9
    message: str = ""


WHERE, ACTIONS = ("input", "output", "both"), ("block", "mask", "flag")


class Constitution(NamedTuple):
    hazards: dict[str, Hazard]
    principles: tuple[Principle, ...]
    policies: tuple[Policy, ...] = ()

    def principle_for(self, hazard: str, key: str) -> Principle:
        """Choose a principle for the hazard (any principle if the hazard is unknown) by a hash of `key`."""
        return choose([p for p in self.principles if hazard in p.hazards] or self.principles, key)

    def name_of(self, hazard: str) -> str:
        return self.hazards[hazard].name if hazard in self.hazards else hazard or "harm"


def choose(options, key: str):
    """Choose an option by a hash of the key, so the choice does not depend on the machine or the order of calls."""
    return options[int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % len(options)]


def load_constitution(path: str | Path | None = None) -> Constitution:
    """Read and check a YAML file; None reads constitution.yaml in this folder, which shows the format.

    Raises: UserError that names the file and the problem.
    """
    path = Path(path) if path else SHIPPED
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"safety.constitution={path}: {error.strerror}; name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, Mapping) or set(content) - {"policies"} != {"hazards", "principles"}:
        raise UserError(f"{path}: must hold the two keys hazards and principles, and may hold policies")
    hazards = {}
    for id, values in _items(content["hazards"], Mapping, f"{path}: hazards"):
        where = f"{path}: hazard {id}"
        _check_keys(values, {"name", "definition"}, set(), where)
        hazards[id] = Hazard(id, _text(values["name"], f"{where}: name"), _text(values["definition"], f"{where}: definition"))
    principles = []
    for number, values in _items(content["principles"], list, f"{path}: principles"):
        principles.append(_principle(values, hazards, f"{path}: principle {number + 1}"))
    given = content.get("policies")
    policies = [] if given is None else [_policy(v, hazards, f"{path}: policy {n + 1}") for n, v in _items(given, list, path)]
    for kind, some in (("principles", principles), ("policies", policies)):
        seen: set[str] = set()
        for one in some:
            if one.id in seen:
                raise UserError(f"{path}: two {kind} are called {one.id!r}; give each an id of its own")
            seen.add(one.id)
    if bare := set(hazards) - {hazard for principle in principles for hazard in principle.hazards}:
        raise UserError(f"{path}: no principle concerns {', '.join(sorted(bare))}; name them, or add one without hazards")
    return Constitution(hazards, tuple(principles), tuple(policies))


def _principle(values: Any, hazards: Mapping[str, Hazard], where: str) -> Principle:
    required = {"id", "text", "critique", "revision", "critiques", "refusals"}
    _check_keys(values, required, {"hazards"}, where)
    where = f"{where} ({values['id']})"
    concerned = values.get("hazards", list(hazards))
    for hazard in _list(concerned, f"{where}: hazards"):
        if hazard not in hazards:
            raise UserError(f"{where}: no hazard {hazard!r}; there are {', '.join(hazards)}")
    texts = {key: _text(values[key], f"{where}: {key}") for key in ("id", "text", "critique", "revision")}
    lists = {
        key: tuple(_text(t, f"{where}: {key}") for t in _list(values[key], f"{where}: {key}"))
        for key in ("critiques", "refusals")
    }
    for key, entries in lists.items():
        for entry in entries:
            try:
                entry.format(hazard="")
            except (KeyError, IndexError, ValueError):
                raise UserError(f"{where}: {key}: {entry!r} may hold no braces but {{hazard}}") from None
    return Principle(**texts, hazards=tuple(concerned), **lists)


def _policy(values: Any, hazards: Mapping[str, Hazard], where: str) -> Policy:
    _check_keys(values, {"id", "action"}, set(Policy._fields) - {"id", "action"}, where)
    where = f"{where} ({values['id']})"
    for key, known in (("where", WHERE), ("action", ACTIONS), ("hazard", ("", *hazards))):
        if values.get(key, known[0]) not in known:
            raise UserError(f"{where}: {key}: {values[key]!r} is none of {', '.join(filter(None, known))}")
    texts = {key: _text(values[key], f"{where}: {key}") for key in ("id", "classifier", "message") if key in values}
    lists = {
        key: tuple(_text(t, f"{where}: {key}") for t in _list(values[key], f"{where}: {key}"))
        for key in ("patterns", "pii")
        if key in values
    }
    if not (lists or texts.get("classifier")):
        raise UserError(f"{where}: finds nothing; give patterns, pii or classifier")
    for pattern in lists.get("patterns", ()):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: patterns: {pattern!r} is no regular expression: {error}") from None
    threshold = values.get("threshold", Policy._field_defaults["threshold"])
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise UserError(f"{where}: threshold: {threshold!r} is no probability; write a number in 0 … 1")
    named = {key: values[key] for key in ("where", "action", "hazard") if key in values}
    return Policy(**texts, **lists, **named, threshold=float(threshold))


def _items(value: Any, kind: type, where: str):
    if not isinstance(value, kind) or not value:
        raise UserError(f"{where}: must be a {'mapping' if kind is Mapping else 'list'} that is not empty")
    return value.items() if kind is Mapping else enumerate(value)


def _check_keys(values: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must be a mapping with the keys {', '.join(sorted(required))}")
    if missing := required - set(values):
        raise UserError(f"{where}: lacks {', '.join(sorted(missing))}")
    if unknown := set(values) - required - optional:
        raise UserError(
            f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(sorted(required | optional))}"
        )


def _list(value: Any, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: must be a list that is not empty")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: must be text, not {value!r}")
    return value.strip()
