"""What a run of a recipe has to do: its stages, and names of results that say what they depend on.

A result is named by a hash of everything that it depends on: the unit's files, the options of the stages before it that rewrite
the text, its own options, and the source code of its stage. So an existing result is right, and after a change of an option, a
rule or a file only the results that depend on it are made anew.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.recipe import buckets
from data.recipe.batch import ORIGINS, Batch
from data.recipe.corpus import CORPUS
from data.recipe.inputs import Unit, digest
from data.recipe.rules import Rule, parse
from data.recipe.stages import STAGES
from lm.errors import UserError, naming

_IMPORT = re.compile(r"^[ \t]*(?:from ([\w.]+) import (\([^)]*\)|[^\n]*)|import ([\w., ]+))", re.MULTILINE)
_NAME = re.compile(r"[\w.]+")
_ROOT = Path(__file__).parents[2]  # of the packages data and lm
READER, FORMAT = "data.sources.archives", 1  # FORMAT: of the files of stages; a change makes all results anew


class Planned(NamedTuple):
    """A stage of a recipe. key: names its results. rules: those on its columns.

    stage: None for the one that reads the files; a Stage, or one of CORPUS.
    """

    name: str
    stage: Any
    options: dict[str, Any]
    key: str
    rules: tuple[Rule, ...]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.key}"

    @property
    def compares(self) -> bool:
        """Whether the stage compares all documents of the corpus."""
        return self.name in CORPUS


def plan(config: Mapping[str, Any], found: Sequence[Unit]) -> list[Planned]:
    """Return the stages of a recipe, first the one that reads. Each rule goes to the stage that measures its column.

    Raises: UserError for an unknown or doubled stage, or a rule or `dataset.bucket_by` on a column that no stage measures.
    """
    stages = {**STAGES, **CORPUS}
    with naming("rules"):
        rules = {rule.column: rule for rule in parse(config["rules"])}
    read = dict(config["read"])
    planned = [Planned("read", None, read, digest((read, FORMAT, code(READER))), ())]
    text, batch = planned[0].key, Batch({name: ["word"] for name in ORIGINS} | {"metadata": [None]})
    known: set[str] = set()  # columns
    for name in filter(None, (name.strip() for name in config["stages"].split(","))):
        if (stage := stages.get(name)) is None:
            near = difflib.get_close_matches(name, stages, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(stages)}"
            raise UserError(f"stages: no stage {name!r}; {hint}")
        if any(name == other.name for other in planned):
            raise UserError(f"stages: {name!r} is there twice")
        options = dict(config.get(name, {}))
        depends: list[Any] = [text, options, code(stage.module), _own_code(stage)]
        if name in CORPUS:  # it sees only the documents that the rules before it leave
            if options["keep"] != "first" and options["keep"] not in known:
                raise UserError(
                    f"{name}.keep={options['keep']!r}: no stage before it measures this column; use first, or a column"
                )
            stage.settings(options)  # which checks them
            depends += [[(one.key, one.rules) for one in planned], [unit.name for unit in found]]
            columns = stage.columns
        else:
            depends.append(stage.depends(options) if stage.depends else None)
            # A document of one word tells which columns there will be.
            columns = tuple(column for column in stage.run(batch, options) if column != "text")
        own = tuple(rules[column] for column in columns if column in rules)
        planned.append(Planned(name, stage, options, digest(depends), own))
        known.update(columns)
        text = planned[-1].key if stage.rewrites else text
    measured = {rule.column for one in planned for rule in one.rules}
    for rule in rules.values():
        if rule.column in ORIGINS and rule.column not in measured:  # such as the language that a source declares
            planned[0] = planned[0]._replace(rules=(*planned[0].rules, rule))
        elif rule.column not in measured:
            raise UserError(f"rules.{rule.column}: no stage of the recipe measures it; add its stage, or set the rule to ()")
    if config["tokenizer"]:
        buckets.check(config["dataset"], known)
    return planned


def _own_code(stage: Any) -> str:
    """Return the source of a stage itself, and what it names."""
    if stage in CORPUS.values():
        return inspect.getsource(type(stage))
    return f"{stage.function}: {inspect.getsource(stage.call)}"


@functools.cache
def code(module: str) -> str:
    """Return a digest of the source of a module and of the modules of `data` that it imports, directly or not."""
    seen: dict[str, str] = {}
    _collect(module, seen)
    return digest(sorted(seen.items()))


def _collect(module: str, seen: dict[str, str]) -> None:
    if module in seen or (source := _source(module)) is None:
        return
    seen[module] = source
    for package, names, modules in _IMPORT.findall(source):
        for name in (package, *(f"{package}.{name}" for name in _NAME.findall(names)), *_NAME.findall(modules)):
            if name.startswith("data."):
                _collect(name, seen)


@functools.cache
def _source(module: str) -> str | None:
    """Return the source of a module, None if there is none. Python's own search would import the packages around it."""
    place = _ROOT.joinpath(*module.split("."))
    path = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    return path and path.read_text(encoding="utf-8")
