"""Pages that show the files and folders of the repository to which the site links."""

import ast
import re
from pathlib import Path

from links import ROOT, on_site

LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".toml": "toml",
    ".jinja": "jinja",
    ".sh": "bash",
}
HEAD = "---\nsearch: { exclude: true }\nhide: [toc]\n---\n"


def pages(targets: set[str]) -> dict[str, str]:
    """Return Markdown by path on the site for files and folders, and for all that is in these folders."""
    found: dict[str, str] = {}
    waiting = sorted(targets)
    while waiting:
        path = waiting.pop()
        page = on_site(path)
        if page in found or not page.startswith("source/"):
            continue
        if (ROOT / path).is_dir():
            inside = _inside(ROOT / path)
            waiting += [str(each.relative_to(ROOT)) for each in inside]
            found[page] = _folder(path, inside)
        else:
            found[page] = _file(path)
    return found


def _inside(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name == "__init__.py" or path.name[0] not in "._"]


def _folder(path: str, inside: list[Path]) -> str:
    pages = {each: f"{each.name}/index.md" if each.is_dir() else f"{each.name}.md" for each in inside}
    lines = [f"- [{each.name}{'/' if each.is_dir() else ''}]({page}) {_about(each)}" for each, page in pages.items()]
    return f"{HEAD}# {path}\n\n" + "\n".join(lines) + "\n"


def _about(path: Path) -> str:
    """Return the first line of a Python file's docstring, or of a file's first comment."""
    text = "" if path.is_dir() else path.read_text(errors="replace")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return text.split("\n")[0].removeprefix("#").strip() if text.startswith("# ") else ""


def _file(path: str) -> str:
    return f"{HEAD}# {path}\n\n{listing(path)}\n"


def listing(path: str) -> str:
    """Return a file as a block of code with numbers of lines."""
    text = (ROOT / path).read_text(errors="replace").rstrip("\n")
    fence = max([*re.findall(r"^`{3,}", text, re.M), "``"], key=len) + "`"
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f'{fence}{{.{language} linenums="1"}}\n{text}\n{fence}'
