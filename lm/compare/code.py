"""What differs in the code of two runs: between their commits, and in the files of the user that they kept."""

import difflib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from lm.runs.provenance import CHANGES, ROOT, git

COMMIT = re.compile(r"[0-9a-f]{7,40}")
PYTHON = ["--", "*.py"]


def of_commits(before: str, after: str, root: Path = ROOT) -> list[str]:
    """Return lines on two versions of the code in the clone `root`: what git says of their Python files, and how to see all.

    before, after: as lm.runs.provenance.code_version returns them; "": unknown.
    """
    lines = []
    if before != after:
        lines.append(f"code: {before or 'unknown'} → {after or 'unknown'}")
    a, b = (code.removesuffix(CHANGES) for code in (before, after))
    if a != b and COMMIT.fullmatch(a) and COMMIT.fullmatch(b):
        found = git(["diff", "--stat", a, b, *PYTHON], root)
        if found is None:
            lines.append(f"  git does not know both commits in {root}")
        elif found:
            where = [] if root == Path.cwd() else ["-C", os.path.relpath(root)]
            lines += [f"  {line}" for line in found.rstrip().splitlines()]
            lines.append(f"  all of it: {shlex.join(['git', *where, 'diff', a, b, *PYTHON])}")
        else:
            lines.append("  the Python files of both commits are the same")
    if changed := [code.removesuffix(CHANGES) for code in dict.fromkeys((before, after)) if code.endswith(CHANGES)]:
        lines.append(f"code: files had changed since {' and '.join(changed)} when a run began, which no commit shows")
    return lines


def of_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the whole difference of two runs' own code, as lm.runs.own_code.own_code returns it."""
    lines = []
    for key in sorted({*before, *after}):
        texts = (own.get(key, "").splitlines() for own in (before, after))
        if found := list(difflib.unified_diff(*texts, key, key, lineterm="")):
            lines += [f"code of {key}:", *(f"  {line}" for line in found[2:])]
    return lines
