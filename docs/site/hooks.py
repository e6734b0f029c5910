"""Hooks of MkDocs: README.md as the start page, the tour, the generated reference, pages of sources, and the navigation."""

import re
import sys
from pathlib import Path

import links

sys.path.insert(0, str(links.ROOT))  # of configs and lm
import config_pages
import function_pages
import source_pages
import tour_page
from mkdocs.structure.files import File, InclusionLevel

ROOT = links.ROOT
GUIDES = ("curate", "train", "align", "evaluate", "serve", "monitoring", "agent", "adapt", "convert", "buckets", "media")
GUIDES += ("models", "sizing", "smollm2", "extend", "runs")  # the order; other pages of docs/ follow by name
ALONE = ("gallery", "benchmarks", "architecture", "decisions")  # entries of their own
TITLES = {"smollm2": "SmolLM2"}


def on_startup(command, dirty):
    """Let the configs be imported."""
    sys.path.insert(0, str(ROOT))


def on_config(config):
    """Give headings GitHub's anchors, and make the navigation from the pages that are there."""
    config.mdx_configs["toc"]["slugify"] = links.slug
    config.nav = navigation(Path(config.docs_dir))
    return config


def on_files(files, config):
    """Add the pages that are made, and let links to files of the repository lead to pages of the site."""
    modules = function_pages.modules()
    targets = {*config_pages.files(), *(f"{verb}.py" for verb in config_pages.VERBS), *(module.path for module in modules)}
    pages = _rewritten(Path(config.docs_dir), targets)
    addresses = function_pages.addresses(modules)
    pages |= config_pages.pages(addresses.get) | function_pages.pages(modules, addresses)
    pages["tour.md"] = tour_page.page(targets.add)
    pages |= source_pages.pages(targets)
    pages["reference/site.css"] = (Path(__file__).parent / "site.css").read_text()
    for path, content in pages.items():
        written = files.src_uris.get(path)
        if written:
            files.remove(written)
        in_nav = written or path in ("index.md", "tour.md") or path.startswith("reference/")
        inclusion = InclusionLevel.UNDEFINED if in_nav else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, path, content=content, inclusion=inclusion))
    return files


def _rewritten(docs: Path, targets: set[str]) -> dict[str, str]:
    """Return README.md and the pages of docs/ with links for the site, and indexes of folders; adds linked paths to targets."""
    pages = {}
    for path in (ROOT / "README.md", *sorted(docs.rglob("*.md"))):
        name = str(path.relative_to(ROOT))
        pages[links.on_site(name)] = links.for_site(name, path.read_text(), targets.add)
    for folder in sorted({path.parent for path in docs.rglob("*.md")} - {docs}):
        index = links.on_site(str(folder.relative_to(ROOT)))
        if index not in pages:
            listed = [f"- [{_title(path)}]({path.name})" for path in sorted(folder.glob("*.md"), key=_number)]
            pages[index] = f"# {folder.name.capitalize()}\n\n" + "\n".join(listed) + "\n"
    return pages


def navigation(docs: Path) -> list:
    """Return the navigation. A page that is missing is left out, and a new one is found."""
    there = {path.stem for path in docs.glob("*.md")}
    guides = [name for name in GUIDES if name in there] + sorted(there - {*GUIDES, *ALONE, "index"})
    entry = {name: [{TITLES.get(name, name.capitalize()): f"{name}.md"}] for name in there}
    tutorials = [{_title(path): f"tutorials/{path.name}"} for path in sorted((docs / "tutorials").glob("*.md"), key=_number)]
    reference = [
        {"Config keys": [{f"{verb}.py": f"reference/{verb}.md"} for verb in config_pages.VERBS]},
        {"Config files": "reference/configs.md"},
    ]
    for top in function_pages.PACKAGES:
        packages = [name for name in function_pages.packages() if name.split(".")[0] == top]
        reference.append({f"Functions of {top}": [f"reference/{name}.md" for name in packages]})
    return [
        {"Start": "index.md"},
        {"Read it in an evening": "tour.md"},
        *([{"Tutorials": tutorials}] if tutorials else []),
        {"Guides": [page for name in guides for page in entry[name]]},
        *entry.get("gallery", []),
        *entry.get("benchmarks", []),
        {"Reference": reference},
        *entry.get("architecture", []),
        *entry.get("decisions", []),
    ]


def _number(path: Path) -> tuple[int, str]:
    """Return the key by which 9-x.md comes before 10-y.md."""
    return int(re.match(r"\d*", path.name)[0] or 0), path.name


def _title(path: Path) -> str:
    """Return the first heading of a Markdown file."""
    return next((line.removeprefix("# ").strip() for line in path.read_text().splitlines() if line.startswith("# ")), path.stem)
