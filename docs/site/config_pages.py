"""Pages of the reference of configs: the keys of each verb, and what each config file changes."""

import ast
import html
from collections.abc import Iterator
from pathlib import Path

import config_keys
from config_keys import VERBS
from docstrings import Address, inline, to_html
from links import ROOT


def pages(address: Address) -> dict[str, str]:
    """Return Markdown by path on the site. address: gives that of a name of the code, or None."""
    return {f"reference/{verb}.md": _verb(verb, address) for verb in VERBS} | {"reference/configs.md": _files(address)}


def files() -> list[str]:
    """Return the config files, as paths in the repository."""
    found = sorted((ROOT / "configs").glob("*/*.py"))
    return [str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py"]


def _verb(verb: str, address: Address) -> str:
    keys, about = config_keys.keys(verb), config_keys.section_comments(verb) | config_keys.model_sections()
    usage = ast.get_docstring(ast.parse((ROOT / f"{verb}.py").read_text())) or ""
    lines = [
        f"# Keys of {verb}.py",
        f'<div class="docstring">{to_html(usage)}</div>',
        f"Every key of [configs/{verb}/default.py](../source/configs/{verb}/default.py.md) with its type, default and meaning. "
        "Set one on the command line as `--config.KEY=VALUE`.",
    ]
    shown = None
    for key in keys:
        section = config_keys.section(key.name)
        if section != shown:
            shown = section
            title = f"## {section} {{#{verb}.{section}}}" if section else "## Top-level keys"
            lines += [title, _paragraph(about.get(section, ""), address)]
        lines += [_paragraph(key.note, address, "note"), f"### `{key.name}` {{#{verb}.{key.name} .key}}"]
        default = "none" if key.default == "None" else key.default
        values = f"<code>{key.type}</code> default <code>{html.escape(default)}</code>"
        lines.append(f'<p class="values">{values}</p><p class="key">{inline(key.explanation, address)}</p>')
    return "\n\n".join(filter(None, lines)) + "\n"


def _paragraph(text: str, address: Address, kind: str = "") -> str:
    return f'<p class="{kind}">{inline(text, address)}</p>' if text else ""


def _files(address: Address) -> str:
    defaults = {verb: config_keys.flat(config_keys.load(f"configs/{verb}/default.py").to_dict()) for verb in VERBS}
    lines = ["# Config files", "What each file is for, and the keys in which it differs from the defaults of its verb."]
    folder = None
    for path in files():
        if Path(path).name == "default.py":
            continue
        if Path(path).parent != folder:
            folder = Path(path).parent
            lines.append(f"## {folder}")
        lines.append(f"### [{path.removeprefix('configs/')}](../source/{path}.md) {{#{path}}}")
        lines.append(_paragraph(_about(path), address))
        for variant in variants(path):
            config = config_keys.flat(config_keys.load(path, variant).to_dict())
            # The verb of a file, also of those in configs/smollm2, is the one whose keys it has.
            verb = min(VERBS, key=lambda verb: len(config.keys() ^ defaults[verb].keys()))
            default = defaults[verb]
            values = sorted((key, value) for key, value in config.items() if key not in default or default[key] != value)
            changed = [f"{key} = {config_keys.shown(value)}" for key, value in values]
            heading = f"`--config={path}{':' + variant if variant else ''}` changes, of [{verb}.py]({verb}.md):"
            lines += [heading, "```{.python .no-copy}\n" + "\n".join(changed or ["# nothing"]) + "\n```"]
    return "\n\n".join(lines) + "\n"


def variants(path: str) -> list[str | None]:
    """Return what a config file takes after a colon: those of its strings that it accepts; [None] if it takes nothing."""
    tree = ast.parse((ROOT / path).read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config")
    if not function.args.args:
        return [None]
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return list(_accepted(path, dict.fromkeys(strings)))


def _accepted(path: str, names) -> Iterator[str]:
    for name in names:
        try:
            config_keys.load(path, name)
        except Exception:  # each file refuses in its own way
            continue
        yield name


def _about(path: str) -> str:
    return (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split("\n\n")[0].replace("\n", " ")
