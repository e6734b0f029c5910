"""Read documents of a TensorFlow Datasets name, with random access and without TensorFlow.

Datasets are searched in $TFDS_DATA_DIR, else in ~/tensorflow_datasets.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data.sources.source import Document, Quarantined, Source
from lm.errors import UserError


def is_known(name: str) -> bool:
    """Return whether the dataset of `name[/config][:version]` has a builder or is prepared on disk."""
    return re.split(r"[/:]", name, maxsplit=1)[0] in names()


def names() -> list[str]:
    """Return all datasets that have a builder or are in a TFDS data folder, sorted."""
    on_disk = [
        entry.name
        for folder in map(os.fspath, tfds.core.utils.file_utils.list_data_dirs())
        if os.path.isdir(folder)
        for entry in os.scandir(folder)
        if entry.is_dir() and _holds_dataset(entry.path)
    ]
    return sorted({*tfds.list_builders(with_community_datasets=False), *on_disk})


def open_tfds(name: str, text_key: str = "text") -> Source:
    """Open the `train` split of a dataset. The first read prepares (downloads) it if it is not on disk.

    Args:
        name: `dataset[/config][:version]`.
        text_key: the feature that holds the text; without such a feature, the only Text feature is used.

    Raises:
        UserError: no such config or version, no train split, or no Text feature to choose. `read` raises it if the
            dataset cannot be prepared here, has a format without random access, or is not UTF-8.
    """
    builder = _builder(name)
    _text_feature(builder, name, text_key)
    if builder.is_prepared():
        _check_train(builder, name)

    def strictly() -> Iterator[Document]:
        for document in read(name, text_key):
            if isinstance(document, Quarantined):
                raise UserError(
                    f"data.input={name!r}: {document.where} is not valid UTF-8; prepare the dataset again with text in UTF-8"
                )
            yield dataclasses.replace(document, origin=builder.info.full_name)

    return Source(re.sub(r"[^a-z0-9]+", "_", name.split(":")[0].lower()).strip("_"), strictly)


def read(name: str, text_key: str) -> Iterator[Document | Quarantined]:
    """Yield the documents of the split `train`, and which rows are not UTF-8. Raises: UserError as `open_tfds`."""
    builder = _builder(name)
    feature = _text_feature(builder, name, text_key)
    licence = " ".join((builder.info.redistribution_info.license or "").split())[:100] or None
    rows = _rows(builder, name)
    for i in range(len(rows)):
        text = rows[i][feature]
        try:
            text = text.decode() if isinstance(text, bytes) else text
        except UnicodeDecodeError:
            yield Quarantined(name, f"train[{i}]", "invalid utf-8")
            continue
        if text and not text.isspace():
            yield Document(f"train[{i}]", text, name, licence)


def open_rows(name: str):
    """Return (random access to the raw rows of the `train` split, its features). Raises: UserError as `open_tfds`."""
    builder = _builder(name)
    return _rows(builder, name), builder.info.features


def prepared_files(name: str) -> list[str]:
    """Return the files of a dataset that is prepared on disk, sorted; [] if it is not."""
    if not is_known(name):
        return []
    builder = _builder(name)
    if not builder.is_prepared():
        return []
    folder = os.fspath(builder.data_path)
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_file())


def _builder(name: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name)
    # A builder runs code of its author, which may raise any error: no such config or version, a missing module.
    except Exception as error:
        raise UserError(f"data.input={name!r} cannot be opened as a TFDS dataset: {_one_line(error)}") from error


def _holds_dataset(folder: str) -> bool:
    """Return whether a folder holds a dataset description at most two levels below: [config/]version."""
    levels = [folder]
    for _ in range(2):
        levels = [e.path for level in levels for e in os.scandir(level) if e.is_dir()]
        if any(os.path.exists(os.path.join(level, "dataset_info.json")) for level in levels):
            return True
    return False


def _text_feature(builder: tfds.core.DatasetBuilder, name: str, text_key: str) -> str:
    """Return `text_key` if it is a Text feature, else the only Text feature. Raises: UserError if there is none or a choice."""
    texts = sorted(key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text))
    if text_key in texts:
        return text_key
    if len(texts) == 1:
        return texts[0]
    near = difflib.get_close_matches(text_key, texts, n=1)
    raise UserError(
        f"data.input={name!r} has no text feature {text_key!r}; set data.text_key to one of its text features: "
        f"{' '.join(map(repr, texts)) or 'it has none'}" + (f" (nearest: {near[0]!r})" if near else "")
    )


def _check_train(builder: tfds.core.DatasetBuilder, name: str) -> None:
    if "train" not in builder.info.splits:
        splits = " ".join(map(repr, builder.info.splits)) or "none"
        raise UserError(f"data.input={name!r} has no split 'train', only {splits}; choose another dataset or config")


def _rows(builder: tfds.core.DatasetBuilder, name: str):
    if not builder.is_prepared():
        try:
            # Random access needs ArrayRecord, which TFDS also writes without TensorFlow.
            builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
        except Exception as error:  # the dataset's own code, the network, the disk, a missing module
            raise UserError(
                f"data.input={name!r} could not be prepared: {_one_line(error)}; prepare it on a machine that can, "
                f"with file_format=array_record, and copy it to {builder.data_path}"
            ) from error
        _check_train(builder, name)
    try:
        return builder.as_data_source("train")
    except NotImplementedError as error:
        raise UserError(
            f"data.input={name!r} is stored as {builder.info.file_format.value}, which has no random access; "
            "prepare it again with file_format=array_record"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
