"""What the tests of the readers share."""

import dataclasses

from data.sources import archives
from data.sources.source import Document, Quarantined


def read(path, **options) -> tuple[list[Document], list[tuple[str, str]]]:
    """Return the documents of a path, and (where, reason) of what is quarantined; read twice, the same both times."""
    options = archives.Options(**options)
    found = list(archives.read(str(path), path.name, options))
    assert list(archives.read(str(path), path.name, options)) == found
    documents = [one for one in found if isinstance(one, Document)]
    assert len({document.id for document in documents}) == len(documents)
    for document in documents:
        assert document.text.strip()
        for value in dataclasses.asdict(document).values():
            for string in value.values() if isinstance(value, dict) else [value]:
                assert string is None or string.encode()
    return documents, [(one.where, one.reason) for one in found if isinstance(one, Quarantined)]
