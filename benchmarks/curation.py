"""Curation beside its peers, on real pages: which documents stay, and megabytes of text a second of one core.

python -m benchmarks.curation --pages=FOLDER [--megabytes=20] [--rounds=3] [--pages_for_extraction=300] [--scaling=20,150]

FOLDER is searched for HTML files, such as those of Debian's python3.13-doc. Needs datatrove[processing], spacy and trafilatura.

1. Rules: each filter of datatrove and ours with the same constants; the Jaccard similarity of the sets of kept documents.
   benchmarks/agreement.py compares them on texts of your own, by language.
2. MinHash: datatrove's signatures (FineWeb's settings), and what our stage writes for the same texts.
3. Extraction: trafilatura and resiliparse as curate.py uses it, on the same pages.
4. A recipe: configs/curate/fineweb.py from WET files to packed tokens, with its thresholds and without any.
5. Two processes: the command curate.py with this recipe, from its start to its report, by the clock with one process and with
   two. The larger corpora are the same pages with words replaced, see benchmarks/curation_memory.py.

Times but those of 5 are CPU seconds of one process. All are taken in turns; medians of the rounds, but 4 has one. Prints
tables; the last line is one JSON object.
"""

import argparse
import gc
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.agreement import MEASURES, keeps, theirs
from benchmarks.curation_memory import REPO, varied
from configs.curate import fineweb
from data.dedup import near
from data.dedup.minhash import FINEWEB
from data.filters.heuristics.c4 import c4
from data.filters.heuristics.fineweb import fineweb_quality
from data.filters.heuristics.gopher import gopher_quality, gopher_repetition
from data.filters.words import Words
from data.recipe import tokenized
from data.recipe.run import run
from data.sources.archives import html
from data.sources.streams import Unreadable
from data.text.sentencepiece_tokenizer import train

BATCH = 1 << 19  # characters, as in data/recipe/units.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=Path())
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages_for_extraction", type=int, default=300)
    parser.add_argument("--scaling", default="20,150", help="megabytes of text")
    parser.add_argument("--recipe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.recipe:
        return one_recipe()
    paths = sorted(options.pages.rglob("*.html"))
    random.Random(0).shuffle(paths)
    texts = texts_of(paths, options.megabytes)
    found = {"rules": rules(texts, options.rounds), "minhash": minhash(texts, options.rounds)}
    found["extraction"] = extraction(paths[: options.pages_for_extraction], options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(
            texts[:: max(1, len(texts) // 500)], Path(folder, "m"), vocab_size=8000, sample_bytes=1 << 20, seed=0, threads=1
        )
        trained.save(Path(folder, "tokenizer"))
        found["recipe"] = recipe(texts, Path(folder))
        sizes = [float(some) for some in options.scaling.split(",") if some]
        found["scaling"] = {f"{some:g} MB": scaling(texts, some, options.rounds, Path(folder)) for some in sizes}
    from lm.reports.page import machine

    print(json.dumps(found | {"documents": len(texts), "machine": machine()}))


def texts_of(paths: Sequence[Path], megabytes: float) -> list[str]:
    texts, size = [], 0
    for path in paths:
        try:
            texts.append(html.page(path.read_bytes()).text)
        except Unreadable:
            continue
        size += len(texts[-1].encode())
        if size >= megabytes * 1e6:
            break
    return texts


def seconds(call: Callable[[], object]) -> float:
    gc.collect()
    begin = time.process_time()
    call()
    return time.process_time() - begin


def size(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def batches(texts: Sequence[str]) -> list[list[str]]:
    found, some, characters = [], [], 0
    for text in texts:
        some.append(text)
        characters += len(text)
        if characters >= BATCH:
            found.append(some)
            some, characters = [], 0
    return [*found, some] if some else found


def measured(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return all columns of the rules, from one splitting into words."""
    parts = []
    for batch in batches(texts):
        words = Words(batch)
        parts.append(gopher_quality(words) | gopher_repetition(words) | c4(words)[1] | fineweb_quality(words))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rules(texts: Sequence[str], rounds: int) -> dict:
    measured(texts[:50])
    theirs("GopherQualityFilter", texts[:1])
    ours, peers, kept = [], [], {}
    for _ in range(rounds):
        ours.append(seconds(lambda: measured(texts)))
        peers.append(seconds(lambda: kept.update({name: theirs(name, texts) for name in MEASURES})))
    columns, found = measured(texts), {}
    print("| filter | kept by datatrove | kept by us | Jaccard |\n| --- | --- | --- | --- |")
    for name in MEASURES:
        mine = keeps(name, columns, len(texts))
        jaccard = (mine & kept[name]).sum() / max(1, (mine | kept[name]).sum())
        found[name] = {"theirs": int(kept[name].sum()), "ours": int(mine.sum()), "jaccard": float(jaccard)}
        print(f"| {name} | {kept[name].sum()} | {mine.sum()} | {jaccard:.4f} |")
    return found | speeds("rules", texts, ours, peers)


def speeds(what: str, texts: Sequence[str], ours: Sequence[float], peers: Sequence[float], peer: str = "datatrove") -> dict:
    mb = size(texts)
    one, other, ratio = mb / statistics.median(ours), mb / statistics.median(peers), statistics.median(np.divide(peers, ours))
    print(f"\n{what}: {one:.2f} MB/s, {peer} {other:.2f} MB/s, {ratio:.1f} ×\n", flush=True)
    return {"megabytes": mb, "ours_mb_s": one, "peer_mb_s": other, "ratio": ratio}


def minhash(texts: Sequence[str], rounds: int) -> dict:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    peer = MinhashDedupSignature(tempfile.gettempdir(), config=MinhashConfig(hash_config=HashConfig(hash_fc="sha1")))

    def theirs() -> None:
        for text in texts[: max(1, len(texts) // 4)]:
            shingles = peer.get_shingles(Document(text=text, id="").text)
            if shingles.size:
                peer.get_signature(shingles)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, near.new_part(Path(folder), FINEWEB) as part:
            first = 0
            for batch in batches(texts):
                part.add(batch, range(first, first + len(batch)))
                first += len(batch)

    quarter = size(texts[: max(1, len(texts) // 4)]) / size(texts)
    mine, peers = [], []
    for _ in range(rounds):
        mine.append(seconds(ours))
        peers.append(seconds(theirs) / quarter)
    return speeds("MinHash", texts, mine, peers)


def extraction(paths: Sequence[Path], rounds: int) -> dict:
    import trafilatura

    pages = [path.read_bytes() for path in paths]
    mine, peers = [], []
    for _ in range(rounds):
        mine.append(seconds(lambda: [extracted(page) for page in pages]))
        peers.append(seconds(lambda: [trafilatura.extract(page) for page in pages]))
    return speeds("extraction", [page.decode(errors="replace") for page in pages], mine, peers, "trafilatura")


def extracted(page: bytes) -> str:
    try:
        return html.page(page).text
    except Unreadable:
        return ""


def recipe(texts: Sequence[str], root: Path) -> dict:
    """Return the speed of a recipe from WET files to packed tokens, with the thresholds of FineWeb and without any.

    mb_s: megabytes of text for a CPU second of one process.  kept: megabytes of text that are packed
    """
    found = {"megabytes": size(texts)}
    write_wet(texts, root / "text", 4)
    for name in ("fineweb", "everything"):
        config = fineweb.get_config()
        config.input, config.tokenizer, config.processes = f"{root}/text/*.wet.gz", f"{root}/tokenizer", 1
        if name == "everything":
            config.rules = {}
        one = spent(config, root / "run")
        found[name] = {"mb_s": found["megabytes"] / one["cpu"], "kept": one["kept"]}
        print(f"recipe {name}, WET to tokens: " + ", ".join(f"{key} {value:.2f}" for key, value in found[name].items()))
    return found


def scaling(texts: Sequence[str], megabytes: float, rounds: int, root: Path) -> dict:
    """Return seconds of curate.py with [one process, two], by the clock and of all cores, and the ratio by the clock."""
    some, total = [], 0
    for text in varied(texts):
        some.append(text)
        total += len(text.encode())
        if total >= megabytes * 1e6:
            break
    write_wet(some, root / "text", max(4, round(megabytes / 10)))
    clock, cpu = ([], []), ([], [])
    for _ in range(rounds):
        for k in (0, 1):
            before, begin = os.times(), time.perf_counter()
            command = [
                *(sys.executable, "curate.py", "--config=configs/curate/fineweb.py", f"--workdir={root / 'run'}"),
                *(f"--config.input={root}/text/*.wet.gz", f"--config.tokenizer={root}/tokenizer"),
                f"--config.processes={k + 1}",
            ]
            subprocess.run(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            now = os.times()
            clock[k].append(time.perf_counter() - begin)
            cpu[k].append(now.children_user + now.children_system - before.children_user - before.children_system)
            shutil.rmtree(root / "run")
    seconds, spent = ([statistics.median(some) for some in both] for both in (clock, cpu))
    found = {"seconds": seconds, "cpu_seconds": spent, "ratio": seconds[0] / seconds[1]}
    print(
        f"curate.py on {megabytes:g} MB: one process {seconds[0]:.1f} s ({spent[0]:.1f} CPU), two {seconds[1]:.1f} s "
        f"({spent[1]:.1f} CPU), {found['ratio']:.2f} × as fast; {os.cpu_count()} cores\n",
        flush=True,
    )
    return found


def write_wet(texts: Sequence[str], folder: Path, files: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for k in range(files):
        (folder / f"part-{k:03d}.warc.wet.gz").write_bytes(wet(texts[k::files], k))


def wet(texts: Sequence[str], first: int) -> bytes:
    """Return a WET file as Common Crawl has it: a gzip member for each record."""
    members = []
    for number, text in enumerate(texts):
        body = text.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://example.org/{first}/{number}\r\n"
            f"WARC-Record-ID: <urn:uuid:{uuid.UUID(int=first << 64 | number)}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        members.append(gzip.compress(head.encode() + body + b"\r\n\r\n", mtime=0))
    return b"".join(members)


def spent(config, workdir: Path) -> dict[str, float]:
    """Run a recipe in its own process. Returns its CPU seconds, without the start of Python, and the megabytes kept."""
    settings = json.dumps([config.to_dict(), str(workdir)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.curation", "--recipe"], input=settings, stdout=subprocess.PIPE, text=True, check=True
    )
    shutil.rmtree(workdir)
    return json.loads(done.stdout.splitlines()[-1])


def one_recipe() -> None:
    """Run the recipe that stands on stdin, and print what it took."""
    config, workdir = json.load(sys.stdin)
    begin = time.process_time()
    run(config, Path(workdir))
    tokens = tokenized.write(config, Path(workdir))
    kept = sum(source[split]["bytes"] for source in tokens["sources"].values() for split in ("train", "valid"))
    print(json.dumps({"cpu": time.process_time() - begin, "kept": kept / 1e6}))


if __name__ == "__main__":
    main()
