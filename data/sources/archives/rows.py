"""Documents of JSON lines and Parquet files. A bad row is quarantined, and reading goes on."""

from collections.abc import Iterator

from data.sources.reading import encodable, is_string, json_rows
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable, open_regular

MAX_LINE_BYTES = 16 << 20  # of a JSON line; parsing takes about five times the line
MAX_TEXT_BYTES = 16 << 20
MAX_COLUMN_BYTES = 4 << 30  # of a text column in one row group, as the file declares it
BATCH_ROWS = 64
# Fields of a row and what they are called elsewhere, the first that is a non-empty string wins.
FIELDS = {
    "id": ("id",),
    "url": ("url",),
    "licence": ("license", "licence"),
    "language": ("language", "lang"),
    "date": ("date", "timestamp", "created"),
    "source": ("source",),
}
METADATA = ("title", "robots", "author", "dump", "licence_link")


def read_json_lines(path: str, id: str, text_key: str) -> Iterator[Document | Quarantined]:
    """Yield the documents of a file of JSON lines; blank lines and blank texts give nothing."""
    for number, row in json_rows(path, MAX_LINE_BYTES):
        try:
            found = row if isinstance(row, Unreadable) else document(row, path, f"{id}:{number}", text_key)
        except Unreadable as error:
            found = error
        if isinstance(found, Unreadable):
            yield Quarantined(path, f"line {number}", found.reason, found.lost)
        elif found:
            yield found


def read_parquet(path: str, id: str, text_key: str) -> Iterator[Document | Quarantined]:
    """Yield the documents of a Parquet file, read one page at a time."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    with open_regular(path) as opened:
        try:
            with pyarrow.parquet.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False) as file:
                columns = _columns(file.schema_arrow, text_key)
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if _column_bytes(file.metadata.row_group(group), text_key) > MAX_COLUMN_BYTES:
                        yield Quarantined(path, f"row group {group}", f"text column over {MAX_COLUMN_BYTES >> 30} GiB")
                        number += rows
                        continue
                    end = number + rows
                    try:
                        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                            yield from _of_batch(batch, number, path, id, text_key)
                            number += batch.num_rows
                    except (pyarrow.ArrowException, OSError):
                        if number >= end:
                            raise
                        place = _place(file.metadata.row_group(group), columns)
                        yield Quarantined(path, f"rows {number + 1} to {end}", "damaged parquet", place)
                    number = end
        except Unreadable:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise Unreadable("damaged parquet", str(error)) from error


def document(row: dict, path: str, id: str, text_key: str) -> Document | None:
    """Return the document of a row, None if its text is null or blank.

    Raises: Unreadable: "no text field", "text not a string", "lone surrogate".
    """
    if text_key not in row:
        raise Unreadable("no text field")
    text = row[text_key]
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        raise Unreadable("text not a string")
    if text.isspace():
        return None
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise Unreadable("lone surrogate") from error
    about = {field: _first(row, names, text_key) for field, names in FIELDS.items()}
    nested = row.get("metadata")
    kept = {name: value for name in METADATA if (value := _first(row, (name,), text_key))}
    if isinstance(nested, dict):  # our own files and dolma's
        kept |= {key: encodable(value) for key, value in nested.items() if isinstance(key, str) and isinstance(value, str)}
    return Document(
        about["id"] or id,
        text,
        about["url"] or about["source"] or path,
        about["licence"],
        url=about["url"],
        language=about["language"],
        date=about["date"],
        metadata=kept or None,
    )


def _first(row: dict, names: tuple[str, ...], text_key: str) -> str | None:
    for name in names:
        value = row.get(name)
        if name != text_key and isinstance(value, str) and value:
            return encodable(value)
        if name == "date" and hasattr(value, "isoformat"):
            return value.isoformat()
    return None


def _columns(schema, text_key: str) -> list[str]:
    import pyarrow

    kinds = {field.name: field.type for field in schema}
    if text_key not in kinds:
        raise Unreadable("no text field")
    if not is_string(kinds[text_key]):
        raise Unreadable("text not a string")
    names = [name for names in FIELDS.values() for name in names] + list(METADATA)
    wanted = {name for name, kind in kinds.items() if is_string(kind)}
    if "date" in kinds and (pyarrow.types.is_timestamp(kinds["date"]) or pyarrow.types.is_date(kinds["date"])):
        wanted.add("date")
    return [text_key, *(name for name in names if name != text_key and name in wanted)]


def _column_bytes(group, text_key: str) -> int:
    columns = (group.column(k) for k in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_key)


def _place(group, columns: list[str]) -> tuple[int, int]:
    """Return the bytes of the file that hold these columns of a row group."""
    chunks = [group.column(k) for k in range(group.num_columns)]
    places = []
    for chunk in (chunk for chunk in chunks if chunk.path_in_schema in columns):
        first = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        places.append((first, first + chunk.total_compressed_size))
    return min(first for first, _ in places), max(end for _, end in places)


def _of_batch(batch, before: int, path: str, id: str, text_key: str) -> Iterator[Document | Quarantined]:
    """Yield the documents of a record batch, converted row by row: a dictionary column may repeat one long text."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    for k in range(batch.num_rows):
        where, text = f"row {before + k + 1}", columns[text_key][k]
        value = getattr(text, "value", text) if hasattr(text, "dictionary") else text
        try:
            if value.is_valid and value.as_buffer().size > MAX_TEXT_BYTES:
                raise Unreadable(f"text over {MAX_TEXT_BYTES >> 20} MiB")
            row = {name: column[k].as_py() for name, column in columns.items()}
            found = document(row, path, f"{id}:{before + k + 1}", text_key)
        except UnicodeDecodeError:
            yield Quarantined(path, where, "invalid utf-8")
        except Unreadable as error:
            yield Quarantined(path, where, error.reason)
        else:
            if found:
                yield found
