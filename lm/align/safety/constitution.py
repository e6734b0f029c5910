"""Load a constitution: hazards for judging answers, principles for critique and revision, policies for serving."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lm.errors import UserError

SHIPPED = Path(__file__).parent / "constitution.yaml"


class Hazard(NamedTuple):
    name: str
    definition: str


class Principle(NamedTuple):
    """A principle of the constitution.

    critique, revision: requests to the model that criticises and rewrites. critiques, refusals: texts of the template reviser,
    formatted with the hazard's name. hazards: ids of the hazards that it applies to; a file without them means all.
    """

    id: str
    text: str
    critique: str
    revision: str
    critiques: tuple[str, ...]
    refusals: tuple[str, ...]
    hazards: tuple[str, ...] = ()


class Policy(NamedTuple):
    """A rule of the server's guardrails (lm/serve/guardrails.py). It finds spans by patterns, personal data or a classifier.

    hazard: id of a hazard, or "". where: of WHERE. action: of ACTIONS.
    patterns: regular expressions, matched without regard to case. Each matches a bounded number of characters.
    pii: kinds of personal data of data/filters/pii/masking.py. classifier: folder of data/filters/classifier whose "good" texts
      are the harmless ones, or ""; it finds the stretches whose probability of harm is at least `threshold`.
    message: what is said instead of a blocked text; "": a refusal of a principle.
    """

    id: str
    action: str
    hazard: str = ""
    where: str = "both"
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
    hazards = {
        _text(id, f"{path}: id of a hazard"): _record(Hazard, values, f"{path}: hazard {id}")
        for id, values in _items(content["hazards"], Mapping, f"{path}: hazards")
    }
    principles = _list(path, content["principles"], "principle", "principles", _principle, hazards)
    policies = content.get("policies")
    policies = _list(path, policies, "policy", "policies", _policy, hazards) if policies is not None else ()
    if bare := set(hazards) - {hazard for principle in principles for hazard in principle.hazards}:
        raise UserError(f"{path}: no principle concerns {', '.join(sorted(bare))}; name them, or add one without hazards")
    return Constitution(hazards, principles, policies)


def _list(path: Path, values: Any, kind: str, kinds: str, read: Callable, hazards: Mapping[str, Hazard]) -> tuple:
    """Return the principles or policies of a list. Raises: UserError for two of the same id."""
    items = _items(values, list, f"{path}: {kinds}")
    records = tuple(read(record, hazards, f"{path}: {kind} {number}") for number, record in items)
    ids = [record.id for record in records]
    if twice := next((id for id in ids if ids.count(id) > 1), None):
        raise UserError(f"{path}: two {kinds} are called {twice!r}; give each an id of its own")
    return records


def _principle(values: Any, hazards: Mapping[str, Hazard], where: str) -> Principle:
    principle = _record(Principle, values, where)
    where = f"{where} ({principle.id})"
    if wrong := [hazard for hazard in principle.hazards if hazard not in hazards]:
        raise UserError(f"{where}: no hazard {wrong[0]!r}; there are {', '.join(hazards)}")
    for entry in (*principle.critiques, *principle.refusals):
        try:
            entry.format(hazard="")
        except (LookupError, AttributeError, TypeError, ValueError):
            raise UserError(f"{where}: {entry!r} may hold no braces but {{hazard}}") from None
    return principle if principle.hazards else principle._replace(hazards=tuple(hazards))


def _policy(values: Any, hazards: Mapping[str, Hazard], where: str) -> Policy:
    policy = _record(Policy, values, where)
    where = f"{where} ({policy.id})"
    for key, known in (("where", WHERE), ("action", ACTIONS), ("hazard", ("", *hazards))):
        if (value := getattr(policy, key)) not in known:
            raise UserError(f"{where}: {key}: {value!r} is none of {', '.join(filter(None, known))}")
    if not (policy.patterns or policy.pii or policy.classifier):
        raise UserError(f"{where}: finds nothing; give patterns, pii or classifier")
    for pattern in policy.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: patterns: {pattern!r} is no regular expression: {error}") from None
    if not 0 <= policy.threshold <= 1:
        raise UserError(f"{where}: threshold: {policy.threshold!r} is no probability; write a number in 0 … 1")
    return policy


def _items(value: Any, kind: type, where: str):
    """Return the items of a mapping, or of a list, numbered from 1."""
    if not isinstance(value, kind) or not value:
        raise UserError(f"{where}: must be a {'mapping' if kind is Mapping else 'list'} that is not empty")
    return value.items() if kind is Mapping else enumerate(value, start=1)


def _record(kind: type, values: Any, where: str) -> Any:
    """Return the hazard, principle or policy of a mapping. Its fields are texts, lists of texts, and a number.

    Raises: UserError for a missing or unknown key, and for a value that is empty or of another type.
    """
    required = {field for field in kind._fields if field not in kind._field_defaults}
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must be a mapping with the keys {', '.join(sorted(required))}")
    if missing := required - set(values):
        raise UserError(f"{where}: lacks {', '.join(sorted(missing))}")
    if unknown := set(values) - set(kind._fields):
        raise UserError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(sorted(kind._fields))}")
    fields = {}
    for key, value in values.items():
        place = f"{where}: {key}"
        if kind.__annotations__[key] is float:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UserError(f"{place}: {value!r} is no number")
            fields[key] = float(value)
        elif kind.__annotations__[key] is str:
            fields[key] = value if value == kind._field_defaults.get(key) else _text(value, place)
        else:
            fields[key] = tuple(_text(text, place) for _, text in _items(value, list, place))
    return kind(**fields)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: must be text, not {value!r}")
    return value.strip()
