"""The stages that a recipe can name. Each maps a batch to new columns; a column `text` replaces the text.

A stage's options are the section of its name in the config. The source of a stage's module, and of the modules of `data` that
it imports, is part of the stage's identity (data/recipe/plan.py), so results are computed again after a change of the code.
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from data.recipe.batch import Batch, Columns
from lm.errors import UserError


def _nothing(options: Mapping[str, Any]) -> None:
    return None


def _as_given(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return options


class Stage(NamedTuple):
    """call(module, batch, options): returns the columns. module: its name; its source decides about results.

    rewrites: whether `text` is among the columns.
    depends(options): what else the results depend on, such as a digest of a file that an option names.
    columns: their names, without `text`; (): `run` is cheap enough to find out.
    resolve(options): the options that `run` gets, with what must be the same during a whole run.
    """

    call: Callable[[ModuleType, Batch, Mapping[str, Any]], Columns]
    module: str
    rewrites: bool = False
    depends: Callable[[Mapping[str, Any]], Any] = _nothing
    columns: tuple[str, ...] = ()
    resolve: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_given

    def run(self, batch: Batch, options: Mapping[str, Any]) -> Columns:
        """Return the new columns of a batch. The module is imported here, so a recipe loads only what it names."""
        return self.call(importlib.import_module(self.module), batch, options)


def _gopher_quality(gopher: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return gopher.gopher_quality(batch.words)


def _gopher_repetition(gopher: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return gopher.gopher_repetition(batch.words)


def _c4(c4: ModuleType, batch: Batch, options: Mapping) -> Columns:
    texts, columns = c4.c4(
        batch.words, end_marks=tuple(options["end_marks"]), min_words=options["min_words"], longest_word=options["longest_word"]
    )
    return {"text": texts} | columns


def _c4_paragraphs(c4: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return c4.c4_paragraphs(batch.words)


def _fineweb_quality(fineweb: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return fineweb.fineweb_quality(batch.words)


def _dclm_lines(dclm: ModuleType, batch: Batch, options: Mapping) -> Columns:
    texts, columns = dclm.dclm_lines(batch.words)
    return {"text": texts} | columns


def _code(code: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return code.code(batch.texts, [about.get("programming_language") for about in _metadata(batch)])


def _language(language: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return _listed(language.language(batch.texts, options["sample"]))


def _urls(urls: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return _listed(urls.url_columns(batch.columns["url"], _block_lists(tuple(sorted(options.items())))))


def _opt_outs(opt_outs: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return _listed(opt_outs.opt_outs(_metadata(batch)))


def _unicode(unicode: ModuleType, batch: Batch, options: Mapping) -> Columns:
    texts, columns = unicode.repair(batch.texts)
    return {"text": texts} | columns


def _bad_words(word_lists: ModuleType, batch: Batch, options: Mapping) -> Columns:
    languages = [language or "" for language in batch.columns["language"]]
    columns = word_lists.bad_words(batch.texts, languages, _word_lists(options["lists"]))
    stays = word_lists.kept_fraction(batch.texts, options["keep_fraction"])
    return columns | {"bad_words_drop": (columns["bad_words"] > 0) & ~stays}


def _listed(columns: Columns) -> Columns:
    """Return the columns with strings as lists."""
    return {name: values.tolist() if values.dtype.kind == "U" else values for name, values in columns.items()}


def _metadata(batch: Batch) -> list[dict[str, str]]:
    return [json.loads(metadata) if metadata else {} for metadata in batch.columns["metadata"]]


@functools.cache
def _block_lists(options: tuple[tuple[str, str], ...]):
    from data.filters.urls import block_lists, read_list

    return block_lists(**{name: read_list(path) for name, path in options if path})


@functools.cache
def _word_lists(folder: str):
    from data.filters.word_lists import read_word_lists

    return read_word_lists(folder)


def _list_files(options: Mapping) -> list[list[str]]:
    from data.filters.urls import read_list

    return [read_list(path) for _, path in sorted(options.items()) if path]


def _word_list_files(options: Mapping) -> Any:
    if not options["lists"]:
        raise UserError("bad_words.lists names no folder; it holds a file of words for each language, such as en or de.txt")
    lists = _word_lists(options["lists"])
    return [(language, sorted(one.words), [entry for _, entry, _ in one.phrases]) for language, one in sorted(lists.items())]


def _pii(masking: ModuleType, batch: Batch, options: Mapping) -> Columns:
    names = ("style", "kinds", "public_ips_only", "regions")
    texts, columns = masking.mask_pii(batch.texts, *(options[name] for name in names))
    return {"text": texts} | columns


def _decontaminate(decontaminate: ModuleType, batch: Batch, options: Mapping) -> Columns:
    from data.recipe import benchmarks

    held = benchmarks.load(options["benchmarks"], options["n"], tuple(options["fields"]))
    matches = decontaminate.find(batch.texts, held)
    columns = decontaminate.columns(matches, held)
    found: list[list[str]] = [[] for _ in batch.texts]
    for document, item in zip(*(pairs.tolist() for pairs in decontaminate.shared(matches, held)[:2])):
        found[document].append(held.ids[item])
    columns["contamination_of"] = [json.dumps(sorted(ids), ensure_ascii=False) if ids else None for ids in found]
    if options["policy"] == "measure":
        return {"text": batch.texts} | columns
    if options["policy"] != "cut":
        raise UserError(
            f"decontaminate.policy={options['policy']!r}; use cut, or measure with rules.contamination_matches=(0, 0)"
        )
    texts, more = decontaminate.cut(
        batch.texts, matches, around=options["around"], least_slice=options["least_slice"], most_pieces=options["most_pieces"]
    )
    return {"text": texts} | columns | more


def _benchmark_files(options: Mapping) -> str:
    from data.recipe import benchmarks

    return benchmarks.digest(options["benchmarks"])


def _classifier(stage: ModuleType, batch: Batch, options: Mapping) -> Columns:
    return stage.classifier(batch.words, options["model"], options["name"])


def _classifier_depends(options: Mapping) -> list[tuple[str, str]]:
    from data.filters.classifier.stage import fingerprints

    return fingerprints(options["model"], options["name"])


STAGES: dict[str, Stage] = {
    "decontaminate": Stage(_decontaminate, "data.dedup.decontaminate", rewrites=True, depends=_benchmark_files),
    "urls": Stage(_urls, "data.filters.urls", depends=_list_files),
    "opt_outs": Stage(_opt_outs, "data.filters.opt_outs"),
    "unicode": Stage(_unicode, "data.filters.unicode", rewrites=True),
    "bad_words": Stage(_bad_words, "data.filters.word_lists", depends=_word_list_files),
    "language": Stage(_language, "data.filters.language"),
    "pii": Stage(_pii, "data.filters.pii.masking", rewrites=True),
    "gopher_quality": Stage(_gopher_quality, "data.filters.heuristics.gopher"),
    "gopher_repetition": Stage(_gopher_repetition, "data.filters.heuristics.gopher"),
    "c4": Stage(_c4, "data.filters.heuristics.c4", rewrites=True),
    "c4_paragraphs": Stage(_c4_paragraphs, "data.filters.heuristics.c4"),
    "fineweb_quality": Stage(_fineweb_quality, "data.filters.heuristics.fineweb"),
    "dclm_lines": Stage(_dclm_lines, "data.filters.heuristics.dclm", rewrites=True),
    "code": Stage(_code, "data.filters.heuristics.code"),
    "classifier": Stage(_classifier, "data.filters.classifier.stage", depends=_classifier_depends),
}
