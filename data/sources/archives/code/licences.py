"""Find the licence of source code: SPDX marks, and sentences of well-known licences."""

from __future__ import annotations

import os
import re

HEAD_CHARACTERS = 4_000  # where a file's own mark is looked for
_NAMES = re.compile(r"(?:un)?licen[sc]e(?:[-_.][\w.-]*)?|copying(?:[-_.][\w.-]*)?|copyright(?:\.\w+)?", re.IGNORECASE)
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+()-]+(?:[ \t]+(?:AND|OR|WITH)[ \t]+[\w.+()-]+)*)")
# All sentences of a row must occur, in lower case, with single spaces. The first row that fits wins.
_SENTENCES = (
    ("Apache-2.0", "apache license", "version 2.0"),
    ("AGPL-3.0-or-later", "gnu affero general public license", "version 3"),
    ("LGPL-3.0-or-later", "gnu lesser general public license", "version 3"),
    ("LGPL-2.1-or-later", "gnu lesser general public license", "version 2.1"),
    ("LGPL-2.0-or-later", "gnu library general public license", "version 2"),
    ("GPL-3.0-or-later", "gnu general public license", "version 3"),
    ("GPL-2.0-or-later", "gnu general public license", "version 2"),
    ("MPL-2.0", "mozilla public license", "2.0"),
    ("EPL-2.0", "eclipse public license", "2.0"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1.0 universal"),
    ("BSL-1.0", "boost software license - version 1.0"),
    ("Zlib", "this software is provided 'as-is', without any express or implied warranty", "must not be misrepresented"),
    ("MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"),
    ("ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee"),
    ("BSD-4-Clause", "redistributions of source code must retain", "all advertising materials mentioning"),
    ("BSD-3-Clause", "redistributions of source code must retain", "endorse or promote products"),
    ("BSD-2-Clause", "redistributions of source code must retain"),
)


def is_licence_file(path: str) -> bool:
    """Return whether a file's name is one that licences have: LICENSE, LICENCE.md, COPYING, UNLICENSE."""
    return bool(_NAMES.fullmatch(os.path.basename(path)))


def licence_of(text: str) -> str | None:
    """Return the SPDX identifier or expression of a licence's text, or None if it is not known."""
    marked = _SPDX.search(text)
    if marked:
        return marked.group(1)
    words = re.sub(r"[\s*#/;]+", " ", text[:20_000].lower())
    return next((name for name, *sentences in _SENTENCES if all(sentence in words for sentence in sentences)), None)


def licence_of_file(text: str) -> str | None:
    """Return the licence that the head of a source file states, or None."""
    return licence_of(text[:HEAD_CHARACTERS])


def nearest(path: str, found: dict[str, str]) -> str | None:
    """Return the licence of the nearest folder above `path` that has one. found: licences by folder, "" for the root."""
    folder = os.path.dirname(path)
    while True:
        if folder in found:
            return found[folder]
        if not folder:
            return None
        folder = os.path.dirname(folder)
