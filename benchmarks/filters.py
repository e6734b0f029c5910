"""Right answers and speed of the filters in data/filters on real parallel text, beside the libraries that they build on.

    python -m benchmarks.filters --pages=DIR [--sample=300 --megabytes=2]

DIR holds folders named after languages ("de", "zh-cn") with HTML pages of the same names, at any depth. Debian's packages
`libreoffice-help-*` are such: `apt-get download libreoffice-help-de; dpkg -x libreoffice-help-de_*.deb DIR/de`. Paragraphs
that are not translated are left out. Prints JSON: macro-F1 of the language over documents of at least 200 bytes and over
paragraphs of at least 60; MB/s (10^6 bytes of UTF-8 a second of CPU time, one core, median of three) of each filter on English
text in documents of about 4,000 characters, and of Unicode repair on every language.
"""

import argparse
import html
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.filters import bias, language, unicode, urls, word_lists
from data.filters.pii.masking import mask_pii

ALIKE = {"en-us": "en", "en-gb": "en", "zh-cn": "zh", "zh-tw": "zh", "pt-br": "pt"}
_HIDDEN = re.compile(r"<(script|style|code|pre)\b.*?</\1>", re.DOTALL)
_PARAGRAPH = re.compile(r"<(?:p|h\d)\b[^>]*>(.*?)</(?:p|h\d)>", re.DOTALL)


def read_pages(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return {language: {name of a page: paragraphs}}. A page's name is its path below the last folder named `text`."""
    pages: dict[str, dict[str, list[str]]] = {}
    for root in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = pages.setdefault(root.name, {})
        for path in sorted(root.rglob("*.html")):
            text = _HIDDEN.sub(" ", path.read_text(encoding="utf-8"))
            said = [" ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split()) for part in _PARAGRAPH.findall(text)]
            own[str(path.relative_to(root)).split("/text/")[-1]] = [paragraph for paragraph in said if paragraph]
    return {name: own for name, own in pages.items() if any(own.values())}


def units(pages: dict[str, dict[str, list[str]]], sample: int) -> dict[str, tuple[list[str], list[str]]]:
    """Return {"document" or "paragraph": (texts, languages)}, evenly sampled, without what is as in English."""
    english = pages.get("en-us", {})
    found: dict[str, tuple[list[str], list[str]]] = {"document": ([], []), "paragraph": ([], [])}
    for name, own in pages.items():
        kept = {page: [p for p in said if name == "en-us" or p not in english.get(page, [])] for page, said in own.items()}
        documents = [text for text in map("\n".join, kept.values()) if len(text.encode()) >= 200]
        paragraphs = [p for said in kept.values() for p in said if len(p.encode()) >= 60]
        for kind, texts in (("document", documents), ("paragraph", paragraphs)):
            chosen = texts[:: max(1, len(texts) // sample)][:sample]
            found[kind][0].extend(chosen)
            found[kind][1].extend([ALIKE.get(name, name)] * len(chosen))
    return found


def macro_f1(expected: Sequence[str], found: Sequence[str]) -> float:
    """Return the mean over the expected languages of 2·TP / (2·TP + FP + FN)."""
    expected, found, scores = np.array(expected), np.array(found), []
    for name in sorted(set(expected.tolist())):
        right = int(((expected == name) & (found == name)).sum())
        scores.append(2 * right / (int((expected == name).sum()) + int((found == name).sum())))
    return statistics.fmean(scores)


def speed(texts: Sequence[str], run: Callable[[Sequence[str]], object]) -> float:
    """Return MB/s, the median of three runs after a short one."""
    run(texts[:3])
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        run(texts)
        seconds.append(time.process_time() - begin)
    return sum(len(text.encode()) for text in texts) / 1e6 / statistics.median(seconds)


def long_documents(pages: dict[str, list[str]], megabytes: float, size: int = 4000) -> list[str]:
    """Return texts of at least `size` characters, joined from pages, up to so many MB."""
    documents, current, total = [], "", 0.0
    for said in pages.values():
        current += "\n".join(said) + "\n\n"
        if len(current) >= size:
            total += len(current.encode()) / 1e6
            documents.append(current)
            current = ""
        if total >= megabytes:
            break
    return documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, required=True)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--megabytes", type=float, default=2.0)
    args = parser.parse_args()
    pages = read_pages(args.pages)
    result: dict = {"languages": len({ALIKE.get(name, name) for name in pages})}
    for kind, (texts, expected) in units(pages, args.sample).items():
        result[f"language_f1_{kind}"] = macro_f1(expected, language.identify(texts)[0])
        result[f"language_{kind}s"] = len(texts)
    english = long_documents(pages["en-us"], args.megabytes)
    words = sorted({word for text in english[:50] for word in text.lower().split() if word.isalpha()})[:400]
    lists = {"en": word_lists.word_list([f"{word}q" for word in words])}
    addresses = [f"https://www.site{n}.example.org/some/longer-path/{n}.html?q=words" for n in range(10_000)]
    blocked = urls.BlockLists(f"domain{n}.example" for n in range(100_000))
    result["megabytes_a_second"] = {
        "language": speed(english, language.language),
        "pii": speed(english, mask_pii),
        "word_lists": speed(english, lambda texts: word_lists.bad_words(texts, ["en"] * len(texts), lists)),
        "bias": speed(english, bias.bias_counts),
        "topics": speed(english, bias.topics),
        "urls": speed(addresses, lambda texts: urls.url_columns(texts, blocked)),
        "unicode": {name: speed(long_documents(own, args.megabytes), unicode.repair) for name, own in pages.items()},
        "peers": peers(english),
    }
    print(json.dumps(result, indent=1))


def peers(texts: Sequence[str]) -> dict[str, float]:
    """Return MB/s of the libraries themselves on a tenth of the texts."""
    import ftfy
    from datatrove.pipeline.formatters.pii import PIIFormatter
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier, formatter = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True), PIIFormatter()
    runs = {"py3langid": identifier.classify, "ftfy": ftfy.fix_text, "datatrove_pii": formatter.format}
    few = texts[: max(5, len(texts) // 10)]
    return {name: speed(few, lambda some, run=run: [run(text) for text in some]) for name, run in runs.items()}


if __name__ == "__main__":
    main()
