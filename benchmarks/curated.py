"""Does curation matter? Equal models on raw and on curated text, the same number of tokens, compared on clean held-out prose.

python -m benchmarks.curated --pages=FOLDER[,FOLDER…] --clean=REGEX [--megabytes=100] [--seeds=0,1,2] [--size=1m]
    [--steps=600] [--out=runs/curated] [--config.KEY=VALUE …]

The folders are searched for HTML files, such as those of Debian's rust-doc, linux-doc and python3.13-doc; each gives as many
pages while it has some. REGEX finds the pages, by their paths, that are known to be good prose, such as tutorials and books
('/(book|tutorial|howto)/'). Half of these are held out.

- raw: all text of the other pages, as a recipe without stages leaves it.
- curated: configs/curate/fineweb.py on the same pages. Options --config.… are keys of this recipe. It does not see REGEX.
- held out: English paragraphs (HTML's <p>) of the held-out pages, of at least 200 characters and with a sentence's end, none of
  which is in any other page. The recipe keeps English only.

All models are those of configs/train/ladder.py:SIZE, with the tokenizer of the first raw one, so tokens are the same. train.py
drops exact duplicates of documents from both texts. Prints bits per byte of each seed, and differences with 95 % intervals over
the held-out documents; the last line is one JSON object. The same line goes on where it was stopped.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import xxhash
import yaml

from benchmarks.smollm2_grpo import bits_per_byte, verb
from lm import saving
from lm.evals.stats.significance import paired

MOST_HELD_OUT = 600_000  # characters of prose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", required=True, help="folders, with commas between")
    parser.add_argument("--clean", type=re.compile, required=True, help="finds the pages of good prose by their paths")
    parser.add_argument("--megabytes", type=float, default=100, help="of HTML")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", default="1m")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/curated"))
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    out = options.out.resolve()
    choose(list(map(Path, options.pages.split(","))), options.clean, options.megabytes, out / "pages")
    task = held_out(out)
    verb(
        "curate", "curate/default.py", out / "raw", f"--config.input={out / 'pages/train'}", "--config.read.main_content=False"
    )
    verb("curate", "curate/fineweb.py", out / "curated", f"--config.input={out / 'pages/train'}", *keys)
    found: dict[str, dict[int, list[dict]]] = {"raw": {}, "curated": {}}
    for seed in map(int, options.seeds.split(",")):
        for name in found:
            workdir = out / f"{name}-{seed}"
            given = [f"--config.data.input={out / name}", f"--config.seed={seed}", f"--config.steps={options.steps}"]
            given += ["--config.optimizer.warmup=50", "--config.data.valid_fraction=0"]
            given += [] if (name, seed) == ("raw", 0) else [f"--config.tokenizer={out / 'raw-0'}"]
            verb("train", f"train/ladder.py:{options.size}", workdir, *given)
            found[name][seed] = evaluated(workdir, task, out / f"{name}-{seed}-held_out")
    rows = {seed: compared(found["raw"][seed], found["curated"][seed]) for seed in found["raw"]}
    print(table(rows))
    from lm.reports.page import machine

    print(json.dumps({"seeds": rows, "steps": options.steps, "size": options.size, "machine": machine()}))


def choose(folders: Sequence[Path], clean: re.Pattern, megabytes: float, into: Path) -> None:
    """Copy a random sample of pages, fixed by their paths, to INTO/train and INTO/held_out."""
    if into.exists():
        return
    pages = [sorted((path, folder) for path in folder.rglob("*.html")) for folder in folders]
    for some in pages:
        random.Random(0).shuffle(some)
    fresh, size = into.with_name("pages.new"), 0
    shutil.rmtree(fresh, ignore_errors=True)
    for path, folder in filter(None, chain.from_iterable(zip_longest(*pages))):
        id = xxhash.xxh3_64_hexdigest(os.fsencode(path.relative_to(folder)))
        is_held_out = clean.search(str(path.relative_to(folder.parent))) and int(id, 16) % 2
        to = fresh / ("held_out" if is_held_out else "train") / f"{id}.html"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        size += to.stat().st_size
        if size >= megabytes * 1e6:
            break
    fresh.rename(into)


def held_out(out: Path) -> Path:
    """Write the prose of the held-out pages, and return the file of the task that scores it."""
    from resiliparse.parse.html import HTMLTree

    from data.filters.language import language

    def paragraphs(path: Path) -> list[str]:
        body = HTMLTree.parse(path.read_text(encoding="utf-8", errors="replace")).body
        # Not get_elements_by_tag_name: each step through its result begins anew.
        return [" ".join(one.text.split()) for one in body if one.tag == "p"] if body else []

    spec = {"kind": "rolling", "doc_to_target": "text", "test_split": "test"}
    task = out / "held_out" / "prose.yaml"
    if not task.exists():
        seen = {one for path in sorted((out / "pages/train").iterdir()) for one in paragraphs(path)}
        rows, size = [], 0
        for path in sorted((out / "pages/held_out").iterdir()):
            fresh = [one for one in paragraphs(path) if len(one) >= 200 and one[-1] in ".?!" and one not in seen]
            seen.update(fresh)
            if fresh and language(["\n\n".join(fresh)])["language"][0] == "en" and size < MOST_HELD_OUT:
                rows.append({"text": "\n\n".join(fresh)})
                size += len(rows[-1]["text"])
        saving.write_lines(task.parent / "prose" / "pages.jsonl", rows)
        saving.write(task, yaml.safe_dump(spec))
    return task


def evaluated(checkpoint: Path, task: Path, workdir: Path) -> list[dict]:
    """Return the samples, in order, of an evaluation of the checkpoint, which is made if there is none."""
    verb(
        "evaluate",
        "evaluate/default.py",
        workdir,
        f"--config.checkpoint={checkpoint}",
        f"--config.tasks={task}",
        f"--config.data_dir={task.parent}",
    )
    with (workdir / "samples.jsonl").open(encoding="utf-8") as lines:
        return sorted(map(json.loads, lines), key=lambda sample: str(sample["doc_id"]))


def compared(raw: Sequence[dict], curated: Sequence[dict]) -> dict[str, float]:
    """Return bits per byte of all text, and `paired` of those of each document."""
    assert [one["doc_id"] for one in raw] == [one["doc_id"] for one in curated]
    by_document = paired(*([one["metrics"]["bits_per_byte"] for one in some] for some in (raw, curated)))
    return {"raw": bits_per_byte(raw), "curated": bits_per_byte(curated), "documents": len(raw)} | {
        name: by_document[name] for name in ("difference", "low", "high")
    }


def table(rows: dict[int, dict[str, float]]) -> str:
    lines = ["| seed | raw | curated | change | by document (95 %) |", "| --- | --- | --- | --- | --- |"]
    for seed, one in rows.items():
        change = f"{one['curated'] / one['raw'] - 1:+.1%}"
        spread = f"{one['difference']:+.3f} ({one['low']:+.3f} … {one['high']:+.3f})"
        lines.append(f"| {seed} | {one['raw']:.3f} | {one['curated']:.3f} | {change} | {spread} |")
    raw, curated = (statistics.mean(one[name] for one in rows.values()) for name in ("raw", "curated"))
    return "\n".join([*lines, f"| mean | {raw:.3f} | {curated:.3f} | {curated / raw - 1:+.1%} | |"])


if __name__ == "__main__":
    main()
