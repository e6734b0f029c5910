"""The site: it builds without a warning, its links hold, and it has every key and every public function."""

import ast
import importlib
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import links
import pytest

ROOT = links.ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, str]:
    """The HTML of each page by its path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: path.read_text() for path in folder.rglob("*.html") if path.name != "404.html"}


@pytest.fixture(scope="module")
def ids(site) -> dict[Path, set[str]]:
    return {path: set(map(unescape, re.findall(r"\sid=\"([^\"]+)\"", page))) for path, page in site.items()}


def page(site, name: str) -> Path:
    return next(path for path in site if str(path).endswith(f"/{name}"))


@pytest.mark.slow
def test_links_and_anchors_hold(site, ids):
    wrong = set()
    for path, text in site.items():
        for target in re.findall(r"<(?:a|link|img|script)\s[^>]*?(?:href|src)=\"([^\"]*)\"", text):
            file, _, fragment = unquote(unescape(target)).partition("#")
            to = (path.parent / file).resolve() if file else path
            if re.match(r"https?:|data:|mailto:", target):
                continue
            if not to.is_file() or (fragment not in ("", "__search") and fragment not in ids.get(to, ())):
                wrong.add((path.name, target))
    assert not wrong


@pytest.mark.slow
def test_the_tour_has_each_file_under_its_note(site):
    text = re.sub(r"<[^>]+>", "", site[page(site, "tour.html")])
    for file in (ROOT / "tour").glob("[a-z]*.py"):
        assert unescape(text).count(file.read_text().splitlines()[0]) == 1, file


@pytest.mark.slow
def test_nothing_is_fetched_from_other_hosts(site):
    for path, text in site.items():
        assert not re.search(r"<(?:script|img|iframe|link)\s[^>]*(?:src|href)=\"?(?:https?:)?//", text), path


@pytest.mark.slow
def test_headings_have_the_anchors_of_the_repository(ids):
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        name = links.on_site(str(path.relative_to(ROOT)))
        assert links.anchors(path.read_text()) <= ids[page(ids, f"{name.removesuffix('.md')}.html")], path


@pytest.mark.slow
def test_code_has_its_keywords_marked_and_can_be_copied(site):
    assert (
        "content.code.copy" in site[page(site, "index.html")]
        and '<span class="kn">import</span>' in site[page(site, "index.html")]
    )


@pytest.mark.parametrize("verb", ["curate", "train", "align", "evaluate", "serve"])
@pytest.mark.slow
def test_every_key_is_there(ids, verb):
    def keys(section: dict, prefix: str):
        for name, value in section.items():
            yield from keys(value, f"{prefix}.{name}") if isinstance(value, dict) and value else [f"{prefix}.{name}"]

    config = importlib.import_module(f"configs.{verb}.default").get_config()
    assert not set(keys(config.to_dict(), verb)) - ids[page(ids, f"reference/{verb}.html")]


@pytest.mark.slow
def test_every_config_file_is_there(ids):
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/*.py")}
    files -= {name for name in files if name.endswith(("/__init__.py", "/default.py"))}
    assert len(files) > 30 and not files - ids[page(ids, "reference/configs.html")]


@pytest.mark.slow
def test_every_public_function_and_class_is_there(ids):
    described, missing = set().union(*(found for path, found in ids.items() if path.parent.name == "reference")), []
    for path in [*(ROOT / "lm").rglob("*.py"), *(ROOT / "data").rglob("*.py")]:
        module = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        module = module.replace("__main__", "main")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                missing += [f"{module}.{node.name}"] if f"{module}.{node.name}" not in described else []
    assert len(described) > 2000 and not missing


def test_missing_and_new_pages_change_the_navigation_only(tmp_path):
    import hooks

    (tmp_path / "tutorials").mkdir()
    for name in ("train.md", "new.md", "decisions.md", "tutorials/10-b.md", "tutorials/9-a.md"):
        (tmp_path / name).write_text(f"# The title of {name}\n")
    entries = {title: pages for entry in hooks.navigation(tmp_path) for title, pages in entry.items()}
    assert list(entries) == ["Start", "Read it in an evening", "Tutorials", "Guides", "Reference", "Decisions"]
    assert entries["Guides"] == [{"Train": "train.md"}, {"New": "new.md"}]
    titles = [title for each in entries["Tutorials"] for title in each]
    assert titles == ["The title of tutorials/9-a.md", "The title of tutorials/10-b.md"]
