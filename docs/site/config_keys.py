"""The keys of configs/: their defaults from get_config(), their explanations from the comments beside them."""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_collections
from links import ROOT

from lm.config import SECTIONS

VERBS = ("curate", "train", "align", "evaluate", "serve")
PARENT = {"align": "train"}  # configs/align/default.py starts from configs/train/default.py


class Key(NamedTuple):
    """A key of a verb's config. note: the comment above a group of keys that begins with this one."""

    name: str
    type: str
    default: str
    explanation: str
    note: str = ""


class Comments(NamedTuple):
    """Comments of a file by key, in the order of the file. notes: of groups, by their first key."""

    explanations: dict[str, str]
    notes: dict[str, str]


def keys(verb: str) -> list[Key]:
    """Return every key of configs/VERB/default.py; those of a section stand together, in the order of the file."""
    config = load(f"configs/{verb}/default.py")
    values = flat(config.to_dict())
    own = comments(ROOT / f"configs/{verb}/default.py")
    parent = comments(ROOT / f"configs/{PARENT[verb]}/default.py") if verb in PARENT else Comments({}, {})
    model = model_explanations()
    order = [*own.explanations, *parent.explanations, *model]
    found = []
    for name in sorted(values, key=lambda name: order.index(name) if name in order else len(order)):
        given = (each[name] for each in (own.explanations, model, parent.explanations) if each.get(name))
        note = own.notes.get(name) or parent.notes.get(name, "")
        found.append(Key(name, _type(config, name), shown(values[name]), next(given, ""), note))
    sections = list(dict.fromkeys(section(key.name) for key in found))
    return sorted(found, key=lambda key: ("" != section(key.name), sections.index(section(key.name))))


def load(path: str, variant: str | None = None) -> ml_collections.ConfigDict:
    """Return the config of a file, given as its path in the repository. variant: what stands behind a colon."""
    spec = importlib.util.spec_from_file_location("config_file", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config() if variant is None else module.get_config(variant)


def section(name: str) -> str:
    """Return the section of a key, such as optimizer; "" for a key of the top."""
    return name.rpartition(".")[0]


def section_comments(verb: str) -> dict[str, str]:
    """Return the comments of a verb's sections: those above and beside their first lines."""
    found: dict[str, str] = {}
    for file in [PARENT[verb], verb] if verb in PARENT else [verb]:
        own = comments(ROOT / f"configs/{file}/default.py")
        found |= {name: f"{own.notes.get(name, '')} {text}".strip() for name, text in own.explanations.items() if text}
    return found


def flat(config: dict, prefix: str = "") -> dict:
    """Return {dotted key: value} of nested sections; an empty section is a key."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def shown(value) -> str:
    """Return a value as it is written in a config file."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 100_000:
        return f"{value:_}"
    return f'"{value}"' if isinstance(value, str) and '"' not in value else repr(value)


def comments(path: Path) -> Comments:
    """Return the comments of the keys that get_config() of a file sets.

    A key is explained by the comment on its line; without one, by the block of comments above it. A block above a key that has
    its own comment speaks of the group that begins there.
    """
    source = path.read_text()
    beside, alone = _comments(source)
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "get_config")
    found = Comments({}, {})
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        name = ast.unparse(node.targets[0]).removeprefix("config.")
        if not ast.unparse(node.targets[0]).startswith("config."):
            continue
        above = _block(alone, node.lineno)
        inner = list(_keywords(node.value, name))
        lines = range(node.lineno, node.end_lineno + 1) if not inner else (node.lineno,)
        own = " ".join(beside[line] for line in lines if line in beside)
        found.explanations[name] = own or above
        if own and above:
            found.notes[name] = above
        for key, line in inner:
            found.explanations[key] = beside.get(line, "") if line != node.lineno else ""
    return found


def model_explanations() -> dict[str, str]:
    """Return the comment of every field of the model's config, by its key in a config file."""
    source = "\n".join((ROOT / name).read_text() for name in ("lm/config/towers.py", "lm/config/model.py"))
    beside, alone = _comments(source)
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}

    def fields(name: str, prefix: str) -> Iterator[tuple[str, str]]:
        for node in classes[name].body:
            if isinstance(node, ast.AnnAssign):
                key = node.target.id
                if key in SECTIONS:
                    yield from fields(SECTIONS[key].__name__, f"{prefix}{key}.")
                else:
                    yield prefix + key, beside.get(node.end_lineno) or _block(alone, node.lineno)

    return dict(fields("ModelConfig", "model."))


def model_sections() -> dict[str, str]:
    """Return the first line of the docstring of each section of the model's config, by its key in a config file."""
    return {f"model.{name}": kind.__doc__.split("\n")[0] for name, kind in SECTIONS.items()}


def _type(config: ml_collections.ConfigDict, name: str) -> str:
    *parents, last = name.split(".")
    for parent in parents:
        config = config[parent]
    kind = config.get_type(last)
    return {"NoneType": "str", "ConfigDict": "section"}.get(kind.__name__, kind.__name__)


def _keywords(value: ast.expr, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield (key, line) of the keyword arguments of ConfigDict(dict(…)) and the like; calls of placeholders have none."""
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Attribute):
            yield from _keywords(value.func.value, prefix)
        for argument in value.args:
            yield from _keywords(argument, prefix)
        for keyword in value.keywords:
            if keyword.arg:
                yield f"{prefix}.{keyword.arg}", keyword.value.end_lineno
                yield from _keywords(keyword.value, f"{prefix}.{keyword.arg}")


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return the comments behind code and those on lines of their own, by line."""
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#").strip()
            (beside if token.line[: token.start[1]].strip() else alone)[token.start[0]] = text
    return beside, alone


def _block(alone: dict[int, str], line: int) -> str:
    """Return the block of comments that ends above a line."""
    begin = line
    while begin - 1 in alone:
        begin -= 1
    return " ".join(alone[number] for number in range(begin, line))
