"""Turn wikitext into plain text in time linear in its length.

Kept: prose, headings, list items, link labels, formulas and code. Left out: templates (but for a few that hold prose), tables,
references, files and categories.
"""

import html
import re
from collections.abc import Callable, Iterator, Set

MAX_CHARACTERS = 4 << 20  # MediaWiki's own limit of a page is 2 MiB
MAX_NESTING = 64  # deeper braces stay as they are, then are removed as marks

_DROPPED_TAGS = "ref references gallery timeline score imagemap graph mapframe hiero templatestyles".split()
_LITERAL_TAGS = "nowiki pre syntaxhighlight source math chem".split()
_PAIRED = re.compile(
    rf"<!--|-->|<(/?)({'|'.join(_DROPPED_TAGS + _LITERAL_TAGS)})\b((?:[^<>\"/]|/(?!>)|\"[^\"<>]*\")*)(/?)>", re.I
)
_MARKS = re.compile(r"\{{2,}|\}{2,}|^[ \t:]*\{\||^[ \t]*\|\}(?!\})|\[\[|\]\]", re.MULTILINE)
_EXTERNAL = re.compile(r"\[(?:https?:)?//[^\s\]<>\[]*+[ \t]*+([^\]\[\n]*+)\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,2000}>")
_BREAK = re.compile(r"<(?:br|/p|/div|/li|/tr)\b[^<>]{0,100}>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_MAGIC = re.compile(r"__[A-Z]{3,20}__")
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z]{2,10})?:[^|]*$")
_ENGLISH = frozenset({"file", "image", "category", "media"})
_SPECIAL = re.compile(r"[\[\]{}|'<>=*#:;_&\n-]")


# Templates of many wikis that hold prose: the slice of their arguments that stands for them (0 is the name), or a text.
_PROSE: dict[str, slice | str] = {
    **dict.fromkeys(("lang", "transliteration", "transl"), slice(2, 3)),
    **dict.fromkeys(("nowrap", "nobr", "small", "mvar", "math", "abbr", "as of"), slice(1, 2)),
    **dict.fromkeys(("convert", "cvt"), slice(1, 3)),
    **dict.fromkeys(("snd", "spaced ndash", "dash"), " – "),
    "'": "'",
    "!": "|",
}


def plain(source: str, dropped: Set[str] = frozenset()) -> str:
    """Return the plain text of an article, "" if it has none.

    Args:
        source: wikitext, at most `MAX_CHARACTERS` characters.
        dropped: names of the wiki's file and category namespaces in lower case, besides the English ones.
    """
    text = _without_marks(_without_pairs(source), _ENGLISH | dropped)
    text = _EXTERNAL.sub(r"\1", text)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _MAGIC.sub("", _QUOTES.sub("", text))
    return html.unescape(_lines(text)).replace("\xa0", " ").strip()


def _without_pairs(source: str) -> str:
    """Remove comments and references; make the content of <nowiki>, <pre> and the like safe from the other rules."""
    kept, at, inside, begin = [], 0, "", 0
    last = {"-->": source.rfind("-->")}
    for match in _PAIRED.finditer(source):
        if match.group(2) and match.group(1):
            last[match.group(2).lower()] = match.start()
    for match in _PAIRED.finditer(source):
        mark, name = match.group(), (match.group(2) or "").lower()
        if inside:
            if mark == "-->" if inside == "-->" else (name == inside and match.group(1)):
                if inside in _LITERAL_TAGS:
                    kept.append(
                        _SPECIAL.sub(
                            lambda found: f"&#{ord(found.group())};", html.unescape(source[begin : match.start()].strip("\n"))
                        )
                    )
                inside, at = "", match.end()
            continue
        if match.start() < at:
            continue
        kept.append(source[at : match.start()])
        at = match.end()
        opened = "-->" if mark == "<!--" else name if name and not match.group(1) and not match.group(4) else None
        if opened and last.get(opened, -1) >= at:
            inside, begin = opened, at
    kept.append(source[at:])
    return "".join(kept)


def _without_marks(text: str, dropped: Set[str]) -> str:
    """Resolve templates, tables and links, which nest, in one pass with a stack of what is open."""
    out: list[str] = []
    stack: list[tuple[str, int]] = []  # the mark that closes, and where in `out` its content begins
    deeper = 0  # marks that are open beyond MAX_NESTING
    at = 0
    for match in _MARKS.finditer(text):
        out.append(text[at : match.start()])
        at = match.end()
        for mark in _marks(match.group().strip(" \t:"), stack):
            if mark in _CLOSES:
                if len(stack) < MAX_NESTING:
                    stack.append((_CLOSES[mark], len(out)))
                else:
                    deeper += 1
                continue
            if deeper:
                deeper -= 1
                continue
            # A mark closes the innermost of its kind; the marks that were open inside of it are dropped.
            depth = next((k for k in range(len(stack) - 1, -1, -1) if stack[k][0] == mark), None)
            if depth is not None:
                begin = stack[depth][1]
                inner = "".join(out[begin:])
                del out[begin:], stack[depth:]
                out.append(_RESOLVES[mark](inner, dropped))
    out.append(text[at:])
    return "".join(out)


def _marks(run: str, stack: list[tuple[str, int]]) -> Iterator[str]:
    """Yield the marks of a run of braces: `{{{{{` is `{{` and `{{{`, and `}}}}}` closes what is open."""
    if run[0] not in "{}" or run == "{|":
        yield run
        return
    left = len(run)
    while left >= 2:
        is_triple = left == 3 if run[0] == "{" else left >= 3 and stack and stack[-1][0] == "}}}"
        size = 3 if is_triple else 2
        yield run[0] * size
        left -= size


def _template(inner: str, dropped: Set[str]) -> str:
    name = inner.partition("|")[0].strip().lower()
    prose = _PROSE.get(name, "")
    if isinstance(prose, str):
        return prose
    arguments = (part.strip() for part in inner.split("|"))
    text = " ".join([part for part in arguments if not re.match(r"\w+\s*=", part)][prose])
    return f"As of {text}" if name == "as of" else text


def _link(inner: str, dropped: Set[str]) -> str:
    target, _, label = inner.partition("|")
    namespace = target.partition(":")[0].strip().lower() if ":" in target else ""
    if namespace in dropped or (not label and _LANGUAGE_LINK.match(target)):
        return ""
    if label:
        return label
    return target.strip().removeprefix(":").partition("#")[0] or target.strip().removeprefix("#")


_CLOSES = {"{{": "}}", "{{{": "}}}", "{|": "|}", "[[": "]]"}
_RESOLVES: dict[str, Callable[[str, Set[str]], str]] = {
    "}}": _template,
    "}}}": lambda inner, dropped: inner.partition("|")[2],
    "|}": lambda inner, dropped: "",
    "]]": _link,
}


def _lines(text: str) -> str:
    """Return the lines with list marks as "- ", headings without "=", and no heading of an empty section."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []  # those with nothing below them yet
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith("=") and line.endswith("=") and line.strip("="):
            level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")))
            headings = [(other, name) for other, name in headings if other < level] + [(level, line[level:-level].strip())]
            continue
        bare = line.lstrip("*#:; \t")
        if not bare or bare in ("|", "}", "|}"):
            if kept and kept[-1]:
                kept.append("")
            continue
        for _, name in headings:
            if kept and kept[-1]:
                kept.append("")
            kept += [name, ""]
        headings = []
        kept.append(f"- {bare}" if line[0] in "*#" else bare)
    return "\n".join(kept)
