"""Does curation matter? Equal models on raw and on curated text, the same number of tokens, compared on clean held-out prose.

python -m benchmarks.crawl --folder=packages --out=runs/crawl
python -m benchmarks.curated --input=runs/crawl/raw --held_out=runs/crawl/held_out [--seeds=0,1,2] [--steps=400]
    [--out=runs/curated] [--config.KEY=VALUE …] [--train.KEY=VALUE …]

INPUT and HELD_OUT are inputs of curate.py, such as NAME=FILES,NAME=FILES. A folder gives a source for each folder in it.

- raw: all text of the input, as a recipe without stages leaves it; of HTML pages with menus and footers.
- curated: configs/curate/fineweb.py on the same input. Options --config.… are keys of this recipe.
- held out: English paragraphs of at least 200 characters with a sentence's end, none of which shares 13 words in a row with the
  raw text (GPT-3's measure of contamination, Brown et al. 2020, appendix C). The recipe keeps English only.

All models are half as wide as those of configs/train/ladder.py:1m, have the tokenizer of the first raw one, and read as many
tokens; options --train.… are keys of the training. train.py drops exact duplicates of documents from both texts. Prints what
stays of each source, the rules that drop most, and bits per byte of each seed and source held out, with 95 % intervals of
paired differences over documents; the last line is one JSON object. The same line goes on where it was stopped.
"""

import argparse
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash
import yaml

from benchmarks.smollm2_grpo import bits_per_byte, verb
from data.dedup.grams import shingles
from data.filters.word_hashes import words
from lm.evals.stats.significance import paired
from lm.files import saving

MIN = 200  # characters of a paragraph
MAX_OF_DOCUMENT, MAX = 3000, 300_000  # characters, of a source: many documents tell more than long ones
GRAM = 13
NARROW = {"embed_dim": 64, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 192}  # 0.4 M parameters
MODEL = [f"--config.model.{key}={value}" for key, value in NARROW.items()]
MODEL += ["--config.batch_size=16", "--config.optimizer.warmup=50", "--config.data.valid_fraction=0"]  # 4,096 tokens a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--held_out", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/curated"))
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith(("--config.", "--train."))]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    model = [*MODEL, *(key.replace("--train.", "--config.", 1) for key in keys if key.startswith("--train."))]
    keys = [key for key in keys if key.startswith("--config.")]
    out, given = options.out.resolve(), f"--config.input={named(options.input)}"
    verb("curate", "curate/default.py", out / "raw", given, "--config.read.main_content=False")
    verb("curate", "curate/fineweb.py", out / "curated", given, *keys)
    verb("curate", "curate/default.py", out / "held_out", f"--config.input={named(options.held_out)}")
    tasks = held_out(out)
    funnels = [json.loads((out / name / "report.json").read_text(encoding="utf-8"))["figures"] for name in ("raw", "curated")]
    print(kept(*funnels), flush=True)
    found: dict[str, dict[int, dict[str, list[dict]]]] = {"raw": {}, "curated": {}}
    seeds = list(map(int, options.seeds.split(",")))
    first = out / f"raw-{seeds[0]}"
    for seed in seeds:
        for name in found:
            workdir = out / f"{name}-{seed}"
            given = [f"--config.data.input={out / name}", f"--config.seed={seed}", f"--config.steps={options.steps}"]
            given += [] if workdir == first else [f"--config.tokenizer={first}"]
            verb("train", "train/ladder.py:1m", workdir, *given, *model)
            found[name][seed] = evaluated(workdir, tasks, out / f"{name}-{seed}-held_out")
    rows = {seed: compared(found["raw"][seed], found["curated"][seed]) for seed in found["raw"]}
    print(table(rows))
    from lm.runs.provenance import machine

    print(json.dumps({"seeds": rows, "steps": options.steps, "train": model, "machine": machine()}))


def named(input: str) -> str:
    """Return the input; of a folder, a source for each folder in it."""
    path = Path(input)
    return ",".join(f"{one.name}={one}" for one in sorted(path.resolve().iterdir())) if path.is_dir() else input


def held_out(out: Path) -> list[Path]:
    """Write the prose of OUT/held_out that OUT/raw does not contain, and return a task for each source, which scores it."""
    from data.filters.language import language

    folder = out / "prose"
    if not folder.exists():
        documents = sorted(
            texts(out / "held_out"), key=lambda one: xxhash.xxh3_64_intdigest(one[1].encode("utf-8", "surrogatepass"))
        )
        known = grams(text for _, text in texts(out / "raw"))
        rows: dict[str, list[dict]] = defaultdict(list)
        for source, text in documents:
            some = [one for one in prose(text) if not shared(one, known)]
            some = some[: 1 + int(np.searchsorted(np.cumsum([len(one) for one in some]), MAX_OF_DOCUMENT))]
            if some and language(["\n\n".join(some)])["language"][0] == "en":
                rows[source].append({"text": "\n\n".join(some)})
        for source, some in rows.items():
            sizes = np.cumsum([len(one["text"]) for one in some])
            saving.write_lines(folder.with_suffix(".new") / source / "prose.jsonl", some[: np.searchsorted(sizes, MAX) + 1])
            spec = {"kind": "rolling", "doc_to_target": "text", "test_split": "test"}
            saving.write(folder.with_suffix(".new") / f"{source}.yaml", yaml.safe_dump(spec))
        folder.with_suffix(".new").rename(folder)
    return sorted(folder.glob("*.yaml"))


def texts(corpus: Path) -> Iterator[tuple[str, str]]:
    """Yield (source, text) of the documents of a corpus."""
    for path in sorted((corpus / "documents").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(256, columns=["source", "text"]):
            yield from zip(*(column.to_pylist() for column in batch.columns))


def prose(text: str) -> list[str]:
    """Return the paragraphs, each in one line, that are long enough and end as a sentence does."""
    paragraphs = (" ".join(one.split()) for one in re.split(r"\n\s*\n", text))
    return [one for one in paragraphs if len(one) >= MIN and one[-1] in ".?!"]


def grams(texts: Iterable[str]) -> np.ndarray:
    """Return uint64, ascending: hashes of all runs of `GRAM` words; of a shorter text, of all its words."""
    texts = iter(texts)
    batches = iter(lambda: list(islice(texts, 256)), [])
    return np.unique(np.concatenate([np.unique(shingles(words(some), GRAM)[0]) for some in batches]))


def shared(text: str, known: np.ndarray) -> bool:
    """Return whether `known`, ascending, holds one of the text's `grams`."""
    own = grams([text])
    return bool((known[np.searchsorted(known, own).clip(max=len(known) - 1)] == own).any())


def evaluated(checkpoint: Path, tasks: Sequence[Path], workdir: Path) -> dict[str, list[dict]]:
    """Return {source: its samples, in order} of an evaluation of the checkpoint, which is made if there is none."""
    verb(
        "evaluate",
        "evaluate/default.py",
        workdir,
        f"--config.checkpoint={checkpoint}",
        f"--config.tasks={','.join(map(str, tasks))}",
        f"--config.data_dir={tasks[0].parent}",
    )
    found: dict[str, list[dict]] = defaultdict(list)
    with (workdir / "samples.jsonl").open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            found[sample["task"]].append(sample)
    return {source: sorted(some, key=lambda sample: str(sample["doc_id"])) for source, some in sorted(found.items())}


def compared(raw: Mapping[str, Sequence[dict]], curated: Mapping[str, Sequence[dict]]) -> dict[str, dict[str, float]]:
    """Return, of each source and of all, bits per byte of all text, and `paired` of those of each document."""
    found = {}
    for name in (*raw, "all"):
        pair = [some[name] if name != "all" else list(chain(*some.values())) for some in (raw, curated)]
        assert [one["doc_id"] for one in pair[0]] == [one["doc_id"] for one in pair[1]]
        by_document = paired(*([one["metrics"]["bits_per_byte"] for one in some] for some in pair))
        found[name] = {"raw": bits_per_byte(pair[0]), "curated": bits_per_byte(pair[1]), "documents": len(pair[0])}
        found[name] |= {key: by_document[key] for key in ("difference", "low", "high")}
    return found


def kept(raw: Mapping, curated: Mapping) -> str:
    """Return tables, from the figures of two reports, of the text of each source that stays, and of what each rule drops."""
    reasons, lines = Counter(), ["| source | raw, MB | share | stays, MB |", "| --- | --- | --- | --- |"]
    sizes = {name: sum(bytes for why in of.values() for _, bytes in why.values()) for name, of in raw["funnel"].items()}
    for name, size in sizes.items():
        stays = sum(curated["kept_bytes"].get(name, {}).values())
        lines.append(f"| {name} | {size / 1e6:.2f} | {size / sum(sizes.values()):.1%} | {stays / 1e6:.2f} |")
        for of_language in curated["funnel"].get(name, {}).values():
            reasons.update({reason: documents for reason, (documents, _) in of_language.items() if reason != "kept"})
    lines += ["", "| first rule that drops it | documents |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {reason} | {documents:,} |" for reason, documents in reasons.most_common(12))])


def table(rows: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    lines = ["| held out | seed | raw | curated | change | by document (95 %) |", "| --- | --- | --- | --- | --- | --- |"]
    for name in next(iter(rows.values())):
        for seed, one in ((seed, row[name]) for seed, row in rows.items()):
            change = f"{one['curated'] / one['raw'] - 1:+.1%}"
            spread = f"{one['difference']:+.3f} ({one['low']:+.3f} … {one['high']:+.3f}), n = {one['documents']}"
            lines.append(f"| {name} | {seed} | {one['raw']:.3f} | {one['curated']:.3f} | {change} | {spread} |")
        raw, curated = (statistics.mean(row[name][side] for row in rows.values()) for side in ("raw", "curated"))
        lines.append(f"| {name} | mean | {raw:.3f} | {curated:.3f} | {curated / raw - 1:+.1%} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
