"""The stages that a recipe can name. Each maps a batch to new columns; a column `text` replaces the text.

A stage's options are the section of its name in the config. The source of a stage's module, and of the modules of `data` that
it imports, is part of the stage's identity (data/recipe/plan.py), so results are computed again after a change of the code.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.recipe.batch import Batch, Columns
from lm.errors import UserError


def _nothing(options: Mapping[str, Any]) -> None:
    return None


def _as_given(options: Mapping[str, Any]) -> Mapping[str, Any]:
    return options


class Stage(NamedTuple):
    """module: whose source decides about results. rewrites: whether `text` is among the columns.

    depends(options): what else the results depend on, such as a digest of a file that an option names.
    columns: their names, without `text`; (): `run` is cheap enough to find out.
    resolve(options): the options that `run` gets, with what must be the same during a whole run.
    """

    run: Callable[[Batch, Mapping[str, Any]], Columns]
    module: str
    rewrites: bool = False
    depends: Callable[[Mapping[str, Any]], Any] = _nothing
    columns: tuple[str, ...] = ()
    resolve: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_given


def _gopher_quality(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.gopher import gopher_quality

    return gopher_quality(batch.words)


def _gopher_repetition(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.gopher import gopher_repetition

    return gopher_repetition(batch.words)


def _c4(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.c4 import c4

    texts, columns = c4(
        batch.words, end_marks=tuple(options["end_marks"]), min_words=options["min_words"], longest_word=options["longest_word"]
    )
    return {"text": texts} | columns


def _c4_paragraphs(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.c4 import c4_paragraphs

    return c4_paragraphs(batch.words)


def _fineweb_quality(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.fineweb import fineweb_quality

    return fineweb_quality(batch.words)


def _dclm_lines(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.dclm import dclm_lines

    texts, columns = dclm_lines(batch.words)
    return {"text": texts} | columns


def _code(batch: Batch, options: Mapping) -> Columns:
    from data.filters.heuristics.code import code

    return code(batch.texts, [about.get("programming_language") for about in _metadata(batch)])


def _language(batch: Batch, options: Mapping) -> Columns:
    from data.filters.language import language

    return _listed(language(batch.texts, options["sample"]))


def _urls(batch: Batch, options: Mapping) -> Columns:
    from data.filters.urls import url_columns

    return _listed(url_columns(batch.columns["url"], _block_lists(tuple(sorted(options.items())))))


def _opt_outs(batch: Batch, options: Mapping) -> Columns:
    from data.filters.opt_outs import opt_outs

    return _listed(opt_outs(_metadata(batch)))


def _unicode(batch: Batch, options: Mapping) -> Columns:
    from data.filters.unicode import repair

    texts, columns = repair(batch.texts)
    return {"text": texts} | columns


def _bad_words(batch: Batch, options: Mapping) -> Columns:
    from data.filters.word_lists import bad_words, kept_fraction

    languages = [language or "" for language in batch.columns["language"]]
    columns = bad_words(batch.texts, languages, _word_lists(options["lists"]))
    stays = kept_fraction(batch.texts, options["keep_fraction"])
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


def _pii(batch: Batch, options: Mapping) -> Columns:
    from data.filters.pii.masking import mask_pii

    texts, columns = mask_pii(batch.texts, options["style"], options["kinds"], options["public_ips_only"], options["regions"])
    return {"text": texts} | columns


def _decontaminate(batch: Batch, options: Mapping) -> Columns:
    from data.dedup import decontaminate
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


def _classifier(batch: Batch, options: Mapping) -> Columns:
    from data.filters.classifier.stage import classifier

    return classifier(batch.words, options["model"], options["name"])


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
