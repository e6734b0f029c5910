"""Links and anchors of Markdown files, as GitHub resolves them, and where they lead on the site."""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOUR = "tour"  # a folder that is one page of the site
# Fenced code, indented code after a blank line, code in a line.
_CODE = re.compile(
    r"^(`{3,}|~{3,}).*?^\1[ \t]*$|(?<=\n\n)(?:(?: {4}|\t)[^\n]*(?:\n|\Z)|[ \t]*\n)+|(`+)(?!`).+?(?<!`)\2(?!`)", re.M | re.S
)
_LINK = re.compile(
    r"\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)|\b(?:href|src)=\"([^\"]*)\"|^\[[^\]]+\]: +(\S+)", re.M
)
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.M)
_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.I)


def masked(markdown: str) -> str:
    """Return the text with code replaced by spaces, so that positions stay the same."""
    return _CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), markdown)


def links(markdown: str) -> list[tuple[int, int]]:
    """Return (begin, end) of each target of a link or image that is not an address on the web. Code holds no links."""
    spans = (found.span(found.lastindex) for found in _LINK.finditer(masked(markdown)))
    return [(begin, end) for begin, end in spans if not _EXTERNAL.match(markdown[begin:end])]


def slug(heading: str, separator: str = "-") -> str:
    """Return GitHub's anchor of a heading without markup."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a Markdown file on GitHub: those of its headings, and explicit ones."""
    found = set(re.findall(r"<[a-z]+[^>]*\b(?:id|name)=\"([^\"]+)\"", masked(markdown)))
    for heading in _HEADING.finditer(_without_blocks(markdown)):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        name = slug(re.sub(r"[`*]", "", plain))
        repeats = (name if n == 0 else f"{name}-{n}" for n in range(len(found) + 1))
        found.add(next(each for each in repeats if each not in found))
    return found


def broken(path: Path, root: Path = ROOT) -> list[str]:
    """Return the links of a Markdown file that lead nowhere in the repository at `root`."""
    text, wrong = path.read_text(), []
    for begin, end in links(text):
        target, _, fragment = text[begin:end].partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or not file.is_relative_to(root):
            wrong.append(f"{path.relative_to(root)}: {text[begin:end]}: no such file")
        elif fragment and file.suffix == ".md" and fragment not in anchors(file.read_text()):
            wrong.append(f"{path.relative_to(root)}: {text[begin:end]}: no such heading")
    return wrong


def on_site(path: str) -> str:
    """Return the site's page or file for a path in the repository: docs/x.md -> x.md, lm/x.py -> source/lm/x.py.md."""
    if path == "README.md":
        return "index.md"
    if path in (TOUR, f"{TOUR}/README.md"):
        return "tour.md"
    page = path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"
    if (ROOT / path).is_dir():
        readme = path.startswith("docs/") and (ROOT / path / "README.md").is_file()
        return posixpath.normpath(f"{page}/{'README' if readme else 'index'}.md")
    return page if path.startswith("docs/") else f"{page}.md"


def for_site(path: str, markdown: str, found: Callable[[str], None] = lambda target: None) -> str:
    """Return the Markdown of a file of the repository with links that hold on the site.

    Args:
      path: the file, from the root of the repository.
      found: called with each path that a link leads to.
    """
    page = posixpath.dirname(on_site(path))
    for begin, end in reversed(links(markdown)):
        target, mark, fragment = markdown[begin:end].partition("#")
        to = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if target and (ROOT / to).exists():  # else MkDocs warns
            found(to)
            line = re.fullmatch(r"L(\d+)(?:-L\d+)?", fragment)
            fragment = f"__codelineno-0-{line[1]}" if line else fragment
            new = posixpath.relpath(on_site(to), page or ".") + mark + fragment
            markdown = markdown[:begin] + new + markdown[end:]
    return markdown


def _without_blocks(markdown: str) -> str:
    """Return the text without blocks of code; code in a line stays, since headings may hold some."""
    return _CODE.sub(lambda found: found[0] if found[2] else "", markdown)
