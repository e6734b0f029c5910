"""How much memory does curation take, and does it grow with the corpus?

python -m benchmarks.curation_memory --text=FILES [--gigabytes=0.25,2] [--processes=2] [--out=runs/curation_memory]
    [--config.KEY=VALUE …]

FILES are JSON lines with real documents as `text`. From these, corpora of each size are made: all documents again and again,
with a fifth of the words replaced by words of other documents; every tenth copy stays as it is, so there are duplicates. Each
corpus goes through configs/curate/fineweb.py. Prints the peak of the resident memory of the run's processes together, and the
speed; the last line is one JSON object.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from data.sources.files import find
from data.sources.reading import json_lines

REPO = Path(__file__).parent.parent
FILE_BYTES = 16 << 20
REPLACED, COPIED = 0.2, 10  # share of words; every COPIED-th copy stays as it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--gigabytes", default="0.25,2")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/curation_memory"))
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    texts = [row["text"] for path in find(options.text, (".jsonl",)) for _, row in json_lines(path)]
    found = []
    print("| corpus | documents | peak memory | MB/s | kept |\n| --- | --- | --- | --- | --- |")
    for gigabytes in map(float, options.gigabytes.split(",")):
        folder = options.out.resolve() / f"{gigabytes:g}"
        shutil.rmtree(folder, ignore_errors=True)
        documents = generate(texts, gigabytes, folder / "text")
        begin = time.perf_counter()
        peak = watched(
            [
                *(sys.executable, "curate.py", "--config=configs/curate/fineweb.py", f"--workdir={folder / 'corpus'}"),
                *(f"--config.input={folder / 'text'}", f"--config.processes={options.processes}", *keys),
            ]
        )
        speed = 1000 * gigabytes / (time.perf_counter() - begin)
        files = json.loads((folder / "corpus" / "manifest.json").read_text(encoding="utf-8"))["files"]
        kept = sum(about["rows"] for name, about in files.items() if name.startswith("documents/"))
        found.append({"gigabytes": gigabytes, "documents": documents, "peak_mib": peak, "mb_s": speed, "kept": kept})
        print(f"| {gigabytes:g} GB | {documents:,} | {peak:,.0f} MiB | {speed:.2f} | {kept:,} |", flush=True)
        shutil.rmtree(folder)
    from lm.runs.provenance import machine

    print(json.dumps({"runs": found, "processes": options.processes, "machine": machine()}))


def generate(texts: Sequence[str], gigabytes: float, into: Path) -> int:
    """Write files of JSON lines, and return the number of documents."""
    into.mkdir(parents=True)
    left, documents, file, written = gigabytes * 1e9, 0, None, 0
    for text in varied(texts):
        if file is None or written >= FILE_BYTES:
            if file is not None:
                file.close()
            file, written = (into / f"{documents:09d}.jsonl").open("w", encoding="utf-8"), 0
        file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        size = len(text.encode())
        written, left, documents = written + size, left - size, documents + 1
        if left <= 0:
            break
    file.close()
    return documents


def varied(texts: Sequence[str]) -> Iterator[str]:
    """Yield the texts again and again, with words replaced."""
    draw = random.Random(0)
    words = [word for text in draw.sample(texts, min(1000, len(texts))) for word in re.findall(r"[^\W\d_]+", text)]
    copy = 0
    while True:
        for n, text in enumerate(texts):
            if copy == 0 or (n + copy) % COPIED == 0:
                yield text
                continue
            pieces = re.split(r"([^\W\d_]+)", text)  # every second piece is a word
            for k in draw.sample(range(1, len(pieces), 2), int(REPLACED * (len(pieces) // 2))):
                pieces[k] = draw.choice(words)
            yield "".join(pieces)
        copy += 1


def watched(command: Sequence[str]) -> float:
    """Run a command and return the highest sum of the resident memory of its processes, in MiB."""
    process, peak = subprocess.Popen(command, cwd=REPO, stdout=sys.stderr), 0
    while process.poll() is None:
        try:
            one = psutil.Process(process.pid)
            peak = max(peak, sum(some.memory_info().rss for some in [one, *one.children(recursive=True)]))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.2)
    if process.returncode:
        sys.exit(process.returncode)
    return peak / 2**20


if __name__ == "__main__":
    main()
