"""Pages of the reference of functions: the public modules, functions and classes of lm and data, one page for each folder.

They are read from the source (ast); nothing is imported.
"""

import ast
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import docstrings
from links import ROOT, on_site

PACKAGES = ("lm", "data")
MARKS = ("property", "functools.cached_property", "classmethod", "staticmethod", "contextlib.contextmanager")  # shown
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Module:
    """A module, as its path in the repository, such as lm/infer/generate.py; its source and tree."""

    path: str
    source: list[bytes]
    tree: ast.Module

    @property
    def name(self) -> str:
        """Return the dotted name, such as lm.infer.generate; lm.convert.main for lm/convert/__main__.py."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".").replace("__main__", "main")

    @property
    def package(self) -> str:
        """Return the dotted name of the folder."""
        return self.path.rpartition("/")[0].replace("/", ".")

    def public(self) -> Iterator[Function | ast.ClassDef]:
        """Yield the public functions and classes."""
        yield from _public(self.tree.body, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))


def modules() -> list[Module]:
    """Return the public modules, folder by folder; a folder's __init__.py first."""
    return [_module(path) for path in _paths()]


def packages() -> list[str]:
    """Return the dotted names of the folders that have a page."""
    return list(dict.fromkeys(str(path.parent.relative_to(ROOT)).replace("/", ".") for path in _paths()))


def names(module: Module) -> list[str]:
    """Return the dotted names of all that a module's part of the page describes: functions, classes and their methods."""
    found = []
    for node in module.public():
        found.append(f"{module.name}.{node.name}")
        found += [f"{found[-1]}.{method.name}" for method in _methods(node)]
    return list(dict.fromkeys(found))


def pages(modules: list[Module], addresses: dict[str, str]) -> dict[str, str]:
    """Return Markdown by path on the site. addresses: from `addresses`."""
    found: dict[str, list[Module]] = {}
    for module in modules:
        found.setdefault(module.package, []).append(module)
    return {_page(package): _package(package, group, addresses) for package, group in found.items()}


def _paths() -> list[Path]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in paths if not path.stem.startswith("_") or path.name in ("__init__.py", "__main__.py")]


def _module(path: Path) -> Module:
    source = path.read_bytes()
    return Module(str(path.relative_to(ROOT)), source.splitlines(), ast.parse(source))


def _page(package: str) -> str:
    return f"reference/{package}.md"


def addresses(modules: list[Module]) -> dict[str, str]:
    """Return the address of each dotted name and each path, from any page of the reference."""
    found = {}
    for module in modules:
        page = _page(module.package).removeprefix("reference/").removesuffix(".md") + ".html"
        address = page if module.path.endswith("/__init__.py") else f"{page}#{module.path.replace('__main__', 'main')}"
        for name in (module.name, module.path, module.path.removesuffix("/__init__.py"), module.path.removesuffix(".py")):
            found.setdefault(name, address)
        found |= {name: f"{page}#{name}" for name in names(module)}
    return found


def _package(package: str, modules: list[Module], addresses: dict[str, str]) -> str:
    lines = [f"# {package}"]
    for module in modules:
        if not module.path.endswith("/__init__.py"):
            lines.append(f"## {module.path.replace('__', '&#95;&#95;')} {{#{module.path.replace('__main__', 'main')}}}")
        lines.append(_docstring(module.tree, addresses))
        for node in module.public():
            lines += _described(module, node, f"{module.name}.{node.name}", "###", addresses)
            if isinstance(node, ast.ClassDef):
                for method in _methods(node):
                    lines += _described(module, method, f"{module.name}.{node.name}.{method.name}", "####", addresses)
    return "\n\n".join(filter(None, lines)) + "\n"


def _described(module: Module, node, name: str, level: str, addresses) -> list[str]:
    short = ".".join(name.split(".")[-2:]) if level == "####" else node.name
    signature = _class(module, node) if isinstance(node, ast.ClassDef) else _signature(node)
    line = f"../{on_site(module.path).removesuffix('.md')}.html#__codelineno-0-{node.lineno}"
    source = f'<p class="source" data-search-exclude><a href="{line}">source</a></p>'
    heading = f"{level} `{short}` {{#{name}}}"
    return [heading, source, f"```{{.python .no-copy}}\n{signature}\n```", _docstring(node, addresses)]


def _docstring(node, addresses) -> str:
    text = ast.get_docstring(node)
    return f'<div class="docstring">{docstrings.to_html(text, addresses.get)}</div>' if text else ""


def _public(body: list[ast.stmt], kinds: tuple[type, ...]) -> Iterator:
    yield from (node for node in body if isinstance(node, kinds) and not node.name.startswith("_"))


def _methods(node) -> list[Function]:
    if not isinstance(node, ast.ClassDef):
        return []
    return list({method.name: method for method in _public(node.body, (ast.FunctionDef, ast.AsyncFunctionDef))}.values())


def _signature(node: Function) -> str:
    """Return the definition without its body."""
    marks = [mark for mark in node.decorator_list if ast.unparse(mark) in MARKS]
    args = copy.copy(node.args)
    if node.name == "__init__":  # without self
        args.args = args.args[1:]
    kind = type(node)(name=node.name, args=args, body=[ast.Expr(ast.Constant(...))], decorator_list=marks, returns=node.returns)
    return ast.unparse(ast.fix_missing_locations(kind)).rpartition(":")[0]


def _class(module: Module, node: ast.ClassDef) -> str:
    """Return the class's line, its public fields with their comments, or the signature of its __init__."""
    bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
    line = f"class {node.name}({bases})" if bases else f"class {node.name}"
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and not ast.unparse(each.target).startswith("_")]
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    if init is not None:
        return f"{line}:\n" + "\n".join(f"    {part}" for part in _signature(init).split("\n"))
    written = [part.decode() for field in fields for part in module.source[field.lineno - 1 : field.end_lineno]]
    return f"{line}:\n" + "\n".join(written) if written else line
