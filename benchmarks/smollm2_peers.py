"""LoRA training of a published model beside TRL and PEFT: steps a minute, peak memory, and both loss curves.

python -m benchmarks.smollm2_peers --checkpoint=FOLDER [--loads=sft,dpo,grpo --steps=8 --rounds=2]

FOLDER is a Hugging Face folder with a chat template, such as SmolLM2-135M-Instruct. Conversations, pairs and prompts are made
on the spot from the standard library. lmcraft runs its own verb, align.py, with data, log and checkpoint. TRL then gets the
same tokens in the same order, with the same adapters, optimizer and learning rate, and without gradient checkpointing, which
makes it slower. TRL pads rows to the longest of a batch; lmcraft packs conversations, and joins the rows of a pair. Each
competitor runs in each of its types, each time in a process of its own, in turns; the type in which it is faster counts. Times
are medians of all steps but the first two. Other work on the machine changes CPU seconds less than times, so both are given.
PyTorch's threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE): beside other work, spinning makes them several times slower.
Memory is the largest resident set of the process. The last line is one JSON object.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import library
from benchmarks.peers import HUGE_PAGES, KEEP_MEMORY

REPO = Path(__file__).parent.parent
WARM = 2
RANK, ALPHA, RATE = 16, 32, 2e-4
ROWS = {"sft": 4, "dpo": 2, "grpo": 8}  # conversations, pairs, completions of a step
LENGTH, ANSWER, GROUP = 512, 128, 8  # tokens of a row, of a sampled answer; answers to a prompt
# TRL's "bfloat16" is autocast; with "weights" the frozen weights are bfloat16 too.
DTYPES = {"lmcraft": ("float32", "bfloat16"), "trl": ("float32", "bfloat16", "weights")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--loads", default="sft,dpo,grpo")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each competitor in each round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each competitor")
    parser.add_argument("--dtypes", default="", help="only these, such as lmcraft/bfloat16,trl/weights")
    parser.add_argument("--ours", default="", help="extra flags of align.py, separated by spaces")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing for TRL, its default")
    parser.add_argument("--worker", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(theirs(options, options.steps + WARM)))
        return
    from lm.runs.provenance import machine

    found = {}
    for load in options.loads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found[load] = compared(load, Path(folder), options)
        print(f"{load}: {json.dumps(found[load])}", flush=True)
    print(json.dumps({"loads": found, "machine": machine()}))


def compared(load: str, folder: Path, options) -> dict:
    """What both did with a load."""
    kinds = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes]
    if options.dtypes:
        kinds = [tuple(kind.split("/")) for kind in options.dtypes.split(",")]
    steps = options.steps + WARM
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(load, 2 * steps * ROWS[load])))
    found: dict[tuple[str, str], list[dict]] = {}
    for turn, (name, dtype) in itertools.product(range(options.rounds), kinds):
        if name == "lmcraft":
            one = ours(load, options.checkpoint, folder, folder / f"{dtype}{turn}", steps, dtype, options.ours.split())
        else:
            command = [sys.executable, "-m", "benchmarks.smollm2_peers", f"--checkpoint={options.checkpoint}"]
            command += [f"--worker={load}", f"--dtype={dtype}", f"--folder={folder}", f"--steps={options.steps}"]
            command += ["--checkpointing"] if options.checkpointing else []
            output, memory, _ = finished(command)
            one = json.loads(output.splitlines()[-1]) | {"memory": memory}
        found.setdefault((name, dtype), []).append(one)
        speed = f"{rate([one]):.2f} steps a minute, {cpu_of([one])} CPU seconds a step"
        print(f"{load} {name} {dtype}: {speed}, {memory_of([one])} GiB", file=sys.stderr, flush=True)
    best = {name: max((kind for kind in found if kind[0] == name), key=lambda kind: rate(found[kind])) for name, _ in found}
    summary = {
        "steps_per_minute": {" ".join(kind): round(rate(runs), 2) for kind, runs in found.items()},
        "cpu_seconds": {" ".join(kind): cpu_of(runs) for kind, runs in found.items()},
        "peak_gib": {" ".join(kind): memory_of(runs) for kind, runs in found.items()},
        "curves": {" ".join(kind): [round(x, 4) for x in runs[0]["curve"]] for kind, runs in found.items()},
    }
    if len(best) == 2:
        mine, other = (found[best[name]] for name in DTYPES)
        gaps = [abs(a - b) for a, b in zip(mine[0]["curve"], other[0]["curve"], strict=True)]
        summary |= {"ratio": round(rate(mine) / rate(other), 2), "memory_ratio": round(memory_of(mine) / memory_of(other), 2)}
        summary |= {"cpu_ratio": round(cpu_of(other) / cpu_of(mine), 2), "largest_gap": round(max(gaps), 4)}
    return summary


def rate(runs: list[dict]) -> float:
    """Steps a minute."""
    return 60 / statistics.median(seconds for run in runs for seconds in run["seconds"])


def cpu_of(runs: list[dict]) -> float:
    """CPU seconds of a step."""
    return round(statistics.median(seconds for run in runs for seconds in run["cpu"]), 2)


def memory_of(runs: list[dict]) -> float:
    return round(statistics.median(run["memory"] for run in runs) / 2**30, 2)


def finished(command: list[str], log: Path | None = None) -> tuple[str, int, list[float]]:
    """The output of a command, the largest resident set of its process in bytes, and its CPU seconds at each line of a log."""
    import psutil

    lines = []
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        environment = {"GLIBC_TUNABLES": HUGE_PAGES if log else KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        process = subprocess.Popen(command, cwd=REPO, stdout=out, stderr=err, env=environment)
        watched = psutil.Process(process.pid)
        while log and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            times = watched.cpu_times()
            new = log.read_text().count("\n") - len(lines) if log.exists() else 0
            lines += [times.user + times.system] * new
            time.sleep(0.02)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0), err.seek(0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{' '.join(command)}\n{out.read()[-2000:]}\n{err.read()[-4000:]}")
        return out.read(), usage.ru_maxrss * 1024, lines


def rows(load: str, count: int) -> list[dict]:
    """Requests with answers. A conversation has 270 tokens or more, so no two share a row; those above 512 lose their end."""
    words, draw = library().split(), random.Random(0)

    def some(low: int, high: int) -> str:
        begin = draw.randrange(len(words) - high)
        return " ".join(words[begin : begin + draw.randint(low, high)])

    found = []
    for _ in range(count):
        asked = [{"role": "user", "content": f"Continue this text in the same style:\n\n{some(55, 65)}"}]
        answers = [[{"role": "assistant", "content": some(110, 130)}] for _ in range(2)]
        if load == "sft":
            found.append({"messages": asked + answers[0]})
        elif load == "dpo":
            found.append({"prompt": asked, "chosen": answers[0], "rejected": answers[1]})
        else:
            found.append({"prompt": asked})
    return found


def digits(prompts, completions, **columns) -> list[float]:
    """A reward that differs from answer to answer: the share of digits in it."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x.isdigit() for x in text) / max(1, len(text)) for text in texts]


def ours(load: str, checkpoint: Path, folder: Path, workdir: Path, steps: int, dtype: str, extra: list[str]) -> dict:
    """align.py: seconds of the timed steps, the curve of all steps, memory. Writes the tokens of each step for `theirs`."""
    keys = {
        "init_from": checkpoint,
        "data.input": folder / "rows.jsonl",
        "data.valid_fraction": 0.0,
        "data.log_ids": True,
        "dtype": dtype,
        "steps": steps,
        "batch_size": ROWS[load],
        "sequence_length": LENGTH,
        "model.adapter.rank": RANK,
        "model.adapter.alpha": float(ALPHA),
        "model.adapter.targets": ".*",
        "optimizer.learning_rate": RATE,
        "optimizer.schedule": "constant",
        "optimizer.warmup": 0,
        "optimizer.b2": 0.999,
        "valid_every": 0,
        "checkpoint_every": 0,
        "samples_every": 0,
    }
    if load == "grpo":
        keys |= {"rewards": f"{__file__}:digits=1", "rl.group_size": GROUP, "rollout.max_new_tokens": ANSWER}
    command = [sys.executable, "align.py", f"--config=configs/align/{load}.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in keys.items()] + extra
    _, memory, cpu = finished(command, workdir / "metrics.jsonl")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    tokens = [0, *(line["tokens"] for line in lines)]
    seconds = [(b - a) / line["tokens_per_second"] for a, b, line in zip(tokens, tokens[1:], lines)]
    if load != "grpo":
        ids = [json.loads(line)["ids"] for line in (workdir / "ids.jsonl").read_text().splitlines()]
        encoded = list(tokens_of(load, workdir, itertools.chain(*ids)))
        (folder / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in encoded))
    curve = [line["reward" if load == "grpo" else "loss"] for line in lines]
    cpu = [b - a for a, b in itertools.pairwise(cpu)]
    return {"seconds": seconds[WARM:], "cpu": cpu[WARM - 1 :], "curve": curve, "memory": memory}


def tokens_of(load: str, workdir: Path, ids):
    """Yield the rows with these ids as TRL takes them."""
    import numpy as np

    from data.chat.example_files import load_examples

    (folder,) = (path.parent for path in workdir.glob("data/*/counts.json"))
    columns = load_examples(folder).train
    begins = np.concatenate([[0], columns["ends"].reshape(-1)[:-1]]).reshape(columns["ends"].shape)
    for row in ids:
        parts = [slice(*ends) for ends in zip(np.ravel(begins[row]), np.ravel(columns["ends"][row]))]
        if load == "sft":
            assert columns["segments"][parts[0]].max() == 1, "TRL would read two conversations of a row as one"
        tokens, trained = ([columns[name][part].tolist() for part in parts] for name in ("tokens", "trained"))
        if len(parts) == 1:
            yield {"input_ids": tokens[0], "completion_mask": [int(x) for x in trained[0]]}
        else:
            answers = [first for one in trained for first in [one.index(True)]]
            names = ("chosen_ids", "rejected_ids")
            yield {"prompt_ids": tokens[0][: answers[0]], **{n: t[a:] for n, t, a in zip(names, tokens, answers)}}


def theirs(options, steps: int) -> dict:
    """TRL's trainer: seconds of the timed steps and the curve of all steps."""
    load, checkpoint, folder, dtype = options.worker, options.checkpoint, options.folder, options.dtype
    import datasets
    import torch
    import trl
    from peft import LoraConfig
    from transformers import TrainerCallback

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    times, cpu, curve, began = [], [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            began.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter() - began[-1][0])
            cpu.append(time.process_time() - began[-1][1])

        def on_log(self, args, state, control, logs=None, **kwargs):
            if (name := "reward" if load == "grpo" else "loss") in logs:
                curve.append(float(logs[name]))

    class Prepared(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    trainer, settings, more = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {"max_length": LENGTH + 1, "completion_only_loss": True}),
        "dpo": (Prepared, trl.DPOConfig, {"max_length": LENGTH}),
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig, {"num_generations": GROUP, "max_completion_length": ANSWER}),
    }[load]
    lines = (folder / ("rows.jsonl" if load == "grpo" else "tokens.jsonl")).read_text().splitlines()
    args = settings(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=ROWS[load],
        max_steps=steps,
        bf16=dtype == "bfloat16",
        model_init_kwargs={"dtype": "bfloat16" if dtype == "weights" else "float32"},
        gradient_checkpointing=options.checkpointing,
        use_cpu=True,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **more,
    )
    trainer(
        model=str(checkpoint),
        args=args,
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0),
        callbacks=[Clock()],
        **({"reward_funcs": digits} if load == "grpo" else {}),
    ).train()
    return {"seconds": times[WARM:], "cpu": cpu[WARM:], "curve": curve}


if __name__ == "__main__":
    main()
