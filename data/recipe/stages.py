"""The stages that a recipe can name. Each maps a batch to new columns; a column `text` replaces the text.

A stage's options are the section of its name in the config. The source of a stage's module, and of the modules of `data` that
it imports, is part of the stage's identity (data/recipe/plan.py), so results are computed again after a change of the code.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data.recipe.batch import Batch, Columns


class Stage(NamedTuple):
    """module: whose source decides about results. rewrites: whether `text` is among the columns.

    depends: returns from the options what else results depend on, such as digests of files; None: nothing.
    """

    run: Callable[[Batch, Mapping[str, Any]], Columns]
    module: str
    rewrites: bool = False
    depends: Callable[[Mapping[str, Any]], Any] | None = None


def _gopher_quality(batch: Batch, options: Mapping) -> Columns:
    from data.filters.gopher import gopher_quality

    return gopher_quality(batch.words)


def _gopher_repetition(batch: Batch, options: Mapping) -> Columns:
    from data.filters.gopher import gopher_repetition

    return gopher_repetition(batch.words)


def _c4(batch: Batch, options: Mapping) -> Columns:
    from data.filters.c4 import c4

    texts, columns = c4(
        batch.words, end_marks=tuple(options["end_marks"]), min_words=options["min_words"], longest_word=options["longest_word"]
    )
    return {"text": texts} | columns


def _c4_paragraphs(batch: Batch, options: Mapping) -> Columns:
    from data.filters.c4 import c4_paragraphs

    return c4_paragraphs(batch.words)


def _fineweb_quality(batch: Batch, options: Mapping) -> Columns:
    from data.filters.fineweb import fineweb_quality

    return fineweb_quality(batch.words)


def _dclm_lines(batch: Batch, options: Mapping) -> Columns:
    from data.filters.dclm import dclm_lines

    texts, columns = dclm_lines(batch.words)
    return {"text": texts} | columns


def _code(batch: Batch, options: Mapping) -> Columns:
    from data.filters.code import code

    about = [json.loads(metadata) if metadata else {} for metadata in batch.columns["metadata"]]
    return code(batch.texts, [one.get("programming_language") for one in about])


def _language(batch: Batch, options: Mapping) -> Columns:
    from data.filters.language import language

    columns = language(batch.texts, options["sample"])
    return columns | {"language": columns["language"].tolist()}


def _pii(batch: Batch, options: Mapping) -> Columns:
    from data.filters.pii.masking import mask_pii

    texts, columns = mask_pii(batch.texts, options["style"], options["kinds"], options["public_ips_only"], options["regions"])
    return {"text": texts} | columns


def _classifier(batch: Batch, options: Mapping) -> Columns:
    from data.filters.classifier.stage import classifier

    return classifier(batch.words, options["model"], options["name"])


def _classifier_depends(options: Mapping) -> list[tuple[str, str]]:
    from data.filters.classifier.stage import fingerprints

    return fingerprints(options["model"], options["name"])


STAGES: dict[str, Stage] = {
    "language": Stage(_language, "data.filters.language"),
    "pii": Stage(_pii, "data.filters.pii.masking", rewrites=True),
    "gopher_quality": Stage(_gopher_quality, "data.filters.gopher"),
    "gopher_repetition": Stage(_gopher_repetition, "data.filters.gopher"),
    "c4": Stage(_c4, "data.filters.c4", rewrites=True),
    "c4_paragraphs": Stage(_c4_paragraphs, "data.filters.c4"),
    "fineweb_quality": Stage(_fineweb_quality, "data.filters.fineweb"),
    "dclm_lines": Stage(_dclm_lines, "data.filters.dclm", rewrites=True),
    "code": Stage(_code, "data.filters.code"),
    "classifier": Stage(_classifier, "data.filters.classifier.stage", depends=_classifier_depends),
}
