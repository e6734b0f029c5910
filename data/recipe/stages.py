"""The stages that a recipe can name. Each maps a batch to new columns; a column `text` replaces the text.

A stage's options are the section of its name in the config. The source of a stage's module, and of the modules of `data` that
it imports, is part of the stage's identity (data/recipe/plan.py), so results are computed again after a change of the code.
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.recipe.batch import Batch, Columns
from lm.errors import UserError

Options = Mapping[str, Any]


class Stage(NamedTuple):
    """A function of a module, whose source decides about results.

    call(function, batch, options): returns what the function does, columns or (texts, columns).
    rewrites: whether it returns texts.
    depends(options): what else the results depend on, such as a digest of a file that an option names.
    """

    module: str
    function: str
    call: Callable[[Callable, Batch, Options], Any]
    rewrites: bool = False
    depends: Callable[[Options], Any] | None = None

    def run(self, batch: Batch, options: Options) -> Columns:
        """Return the new columns of a batch. The module is imported here, so a recipe loads only what it names."""
        found = self.call(getattr(importlib.import_module(self.module), self.function), batch, options)
        return {"text": found[0]} | found[1] if isinstance(found, tuple) else found


def _of_words(function: Callable, batch: Batch, options: Options) -> Any:
    return function(batch.words, **options)


def _of_texts(function: Callable, batch: Batch, options: Options) -> Any:
    return function(batch.texts, **options)


def _code(code: Callable, batch: Batch, options: Options) -> Columns:
    return code(batch.texts, [about.get("programming_language") for about in _metadata(batch)])


def _opt_outs(opt_outs: Callable, batch: Batch, options: Options) -> Columns:
    return opt_outs(_metadata(batch))


def _metadata(batch: Batch) -> list[dict[str, str]]:
    return [json.loads(metadata) if metadata else {} for metadata in batch.columns["metadata"]]


def _urls(url_columns: Callable, batch: Batch, options: Options) -> Columns:
    return url_columns(batch.columns["url"], _block_lists(**options))


@functools.cache
def _block_lists(**files: str):
    from data.filters.urls import BlockLists, read_list

    return BlockLists(**{name: read_list(path) for name, path in files.items() if path})


def _list_files(options: Options) -> list[list[str]]:
    from data.filters.urls import read_list

    return [read_list(path) for _, path in sorted(options.items()) if path]


def _bad_words(bad_words: Callable, batch: Batch, options: Options) -> Columns:
    languages = [language or "" for language in batch.columns["language"]]
    return bad_words(batch.texts, languages, _word_lists(options["lists"]))


@functools.cache
def _word_lists(folder: str):
    from data.filters.word_lists import read_word_lists

    return read_word_lists(folder)


def _word_list_files(options: Options) -> Any:
    if not options["lists"]:
        raise UserError("bad_words.lists names no folder; it holds a file of words for each language, such as en or de.txt")
    lists = _word_lists(options["lists"])
    return [(language, sorted(own.words), [entry for _, entry, _ in own.phrases]) for language, own in sorted(lists.items())]


def _decontaminate(cleaned: Callable, batch: Batch, options: Options) -> tuple[list[str], Columns]:
    from data.recipe import benchmarks

    more = dict(options)
    held = benchmarks.load(more.pop("benchmarks"), more.pop("n"), tuple(more.pop("fields")))
    return cleaned(batch.texts, held, **more)


def _benchmark_files(options: Options) -> str:
    from data.recipe import benchmarks

    return benchmarks.digest(options["benchmarks"])


def _classifiers(options: Options) -> list[tuple[str, str]]:
    from data.filters.classifier.linear import fingerprints

    return fingerprints(options["model"], options["name"])


STAGES: dict[str, Stage] = {
    "decontaminate": Stage("data.dedup.decontaminate", "cleaned", _decontaminate, rewrites=True, depends=_benchmark_files),
    "urls": Stage("data.filters.urls", "url_columns", _urls, depends=_list_files),
    "opt_outs": Stage("data.filters.opt_outs", "opt_outs", _opt_outs),
    "unicode": Stage("data.filters.unicode", "repair", _of_texts, rewrites=True),
    "bad_words": Stage("data.filters.word_lists", "bad_words", _bad_words, depends=_word_list_files),
    "language": Stage("data.filters.language", "language", _of_texts),
    "pii": Stage("data.filters.pii.masking", "mask_pii", _of_texts, rewrites=True),
    "gopher_quality": Stage("data.filters.heuristics.gopher", "gopher_quality", _of_words),
    "gopher_repetition": Stage("data.filters.heuristics.gopher", "gopher_repetition", _of_words),
    "c4": Stage("data.filters.heuristics.c4", "c4", _of_words, rewrites=True),
    "c4_paragraphs": Stage("data.filters.heuristics.c4", "c4_paragraphs", _of_words),
    "fineweb_quality": Stage("data.filters.heuristics.fineweb", "fineweb_quality", _of_words),
    "dclm_lines": Stage("data.filters.heuristics.dclm", "dclm_lines", _of_words, rewrites=True),
    "code": Stage("data.filters.heuristics.code", "code", _code),
    "classifier": Stage("data.filters.classifier.linear", "classifier", _of_words, depends=_classifiers),
}
