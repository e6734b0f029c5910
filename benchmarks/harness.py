"""Requests a second of lm-evaluation-harness on our engine beside its own HF backend, on one model and this machine.

python -m benchmarks.harness [--model=large --items=200 --rounds=1 --tasks=letters,written]

A random model in float32, `large` of 14 million parameters or `small` of 0.6; or the Hugging Face folder of a published one.
Tasks are written on the spot. Timed is what answers `simple_evaluate`'s requests, from texts to log-likelihoods or texts,
and, as `with_harness`, all of `simple_evaluate`: what the harness itself does takes as long for both. Ours runs twice, the
first time with what must be compiled. The HF backend runs with batches of 16 and of 64, and the better one counts, load by
load. Each competitor has a process of its own; lmcraft has a device of its mesh on every core. Log-likelihoods must agree.
The last line is one JSON object; `all` is the time of all loads together.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).parent.parent
MODELS = {
    "small": dict(vocab_size=4096, num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=2, mlp_dim=176),
    "large": dict(vocab_size=4096, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=6, mlp_dim=1024),
}
WORKERS = ("lmcraft", "hf16", "hf64")
FEW = 0.25  # of the items are asked with examples, whose requests are long
# (task, shots)
LOADS = (
    ("letters", 0),
    ("answers", 0),
    ("letters", 5),
    ("answers", 5),
    ("answers_drawn", 5),
    ("pages", 0),
    ("written", 0),
    ("written", 5),
)
TASKS = {
    "letters": {
        "output_type": "multiple_choice",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "right",
        "doc_to_text": "{{text}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "description": "The following are multiple choice questions (with answers) about modules.\n\n",
        "fewshot_config": {"sampler": "first_n"},
    },
    "answers": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "fewshot_config": {"sampler": "first_n"},
    },
    "answers_drawn": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "doc_to_text": "Question: {{text}}\nAnswer:",
    },
    "pages": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "doc_to_target": "{{choices[right]}}",
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 64},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="large", help=f"{', '.join(MODELS)}, or a Hugging Face folder")
    parser.add_argument("--items", type=int, default=200, help="of each task without examples; a quarter with examples")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each competitor")
    parser.add_argument("--tasks", default=",".join(TASKS), help="only these")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.worker, options.folder, options.items, options.tasks.split(","))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.model)
        write_tasks(Path(folder), options.items)
        found: dict[str, list[dict]] = {name: [] for name in WORKERS}
        devices = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"
        for _, name in itertools.product(range(options.rounds), WORKERS):
            command = [sys.executable, "-m", "benchmarks.harness", f"--worker={name}", f"--folder={folder}"]
            done = subprocess.run(
                [*command, f"--items={options.items}", f"--tasks={options.tasks}"],
                cwd=REPO,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"},
            )
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            for load, one in found[name][-1].items():
                print(f"{name:8} {load:24} {one['requests'] / one['seconds']:8.1f} requests/s, at first {one['first']:.1f} s")
    print(
        json.dumps(
            {"model": MODELS.get(options.model, options.model)} | compared(found, 0.0 if options.model in MODELS else 1e-5)
        )
    )


def compared(found: dict[str, list[dict]], rounding: float) -> dict:
    """Rates of both sides and their ratios, of the best round of each; fails where log-likelihoods differ.

    rounding: what they may differ by, beside 1e-4, as a share of themselves: the layers of a deep model add up.
    """
    from lm.runs.provenance import machine

    ours = found["lmcraft"]
    loads, most, total = {}, 0.0, dict.fromkeys(("best", "seconds", "first", "best_whole", "whole"), 0.0)
    for load, one in ours[0].items():
        theirs = {name: min(run[load]["seconds"] for run in found[name]) for name in WORKERS[1:]}
        best_whole = min(run[load]["whole"] for name in WORKERS[1:] for run in found[name])
        theirs_texts = found["hf16"][0][load]["texts"]
        alike = [a == b for a, b in zip(one["texts"], theirs_texts, strict=True)]
        for a, b in zip(one["logps"], found["hf16"][0][load]["logps"], strict=True):
            # The backend adds up float32, whose spacing at thousands of nats is above 1e-4: two of that are let pass.
            difference = abs(a - b) - 2 * float(np.spacing(np.float32(abs(b))))
            assert difference < 1e-4 + rounding * abs(b), f"{load}: {a} is not {b}"
            most = max(most, difference)
        best, requests = min(theirs.values()), one["requests"]
        seconds, first, whole = (min(run[load][key] for run in ours) for key in ("seconds", "first", "whole"))
        loads[load] = {
            "requests": requests,
            "lmcraft": round(requests / seconds, 1),
            "lmcraft_with_compilation": round(requests / first, 1),
            **{name: round(requests / s, 1) for name, s in theirs.items()},
            "ratio": round(best / seconds, 2),
            "ratio_with_compilation": round(best / first, 2),
            "ratio_with_harness": round(best_whole / whole, 2),
        } | ({"same_texts": round(sum(alike) / len(alike), 3)} if alike else {})
        for key, value in zip(total, (best, seconds, first, best_whole, whole), strict=True):
            total[key] += value
    ratios = {
        "ratio": round(total["best"] / total["seconds"], 2),
        "with_compilation": round(total["best"] / total["first"], 2),
        "with_harness": round(total["best_whole"] / total["whole"], 2),
    }
    return {"loads": loads, "all": ratios, "largest_difference": most, "machine": machine()}


def write_model(folder: Path, name: str) -> None:
    """Write the model, as a workdir and as a Hugging Face folder; links to a published one will do for both."""
    if name not in MODELS:
        for link in ("workdir", "published"):
            (folder / link).symlink_to(Path(name).resolve(strict=True))
        return
    import jax

    from data.text.sentencepiece_tokenizer import train
    from lm.config import ModelConfig
    from lm.convert.to_published import to_published
    from lm.convert.to_workdir import write_workdir
    from lm.model.transformer import build

    (folder / "workdir").mkdir()
    tokenizer, size = folder / "workdir" / "tokenizer.model", MODELS[name]["vocab_size"]
    train([library()], tokenizer, vocab_size=size, sample_bytes=1 << 21, seed=0, threads=2)
    config = ModelConfig(**MODELS[name], max_positions=2048, dtype="float32")
    write_workdir(folder / "workdir", config, jax.jit(lambda: build(config, 0))())
    to_published(folder / "workdir", folder / "published")


def write_tasks(folder: Path, items: int) -> None:
    """Write the tasks and their items."""
    words = library().split()
    for split, count in (("train", 40), ("test", items)):
        draw = random.Random(len(split))

        def some(low: int, high: int, draw=draw) -> str:
            begin = draw.randrange(len(words) - high)
            return " ".join(words[begin : begin + draw.randint(low, high)])

        rows = [
            {"text": some(15, 40), "choices": [some(2, 7) for _ in range(4)], "right": n % 4, "page": some(100, 900)}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    for name, task in TASKS.items():
        whole = {
            "task": f"bench_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "fewshot_split": "train",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole))


def library() -> str:
    """Prose and code of the standard library."""
    files = sorted(Path(argparse.__file__).parent.glob("[a-p]*.py"))
    return re.sub(r"[^\x20-\x7e\n]", "", "\n".join(file.read_text(encoding="utf-8") for file in files))[:2_000_000]


def measured(worker: str, folder: Path, items: int, chosen: list[str]) -> dict[str, dict]:
    """{load: {"requests", "first" and "seconds": of answering them the first and the second time, "whole": all of the second
    evaluation, "logps", "texts"}}."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    datasets.disable_progress_bars()
    model, manager = opened(worker, folder), TaskManager(include_path=str(folder), include_defaults=False)
    answering: list[float] = []
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, kind, timed(getattr(model, kind), answering))
    found = {}
    for task, shots in (load for load in LOADS if load[0] in chosen):
        limit = max(1, int(items * (FEW if shots or task in ("pages", "written") else 1)))
        answering.clear()
        for _ in range(2 if worker == "lmcraft" else 1):
            begin = time.perf_counter()
            result = simple_evaluate(
                model, tasks=[f"bench_{task}"], task_manager=manager, num_fewshot=shots, limit=limit, bootstrap_iters=0
            )
            whole = time.perf_counter() - begin
        answers = [response[0] for sample in result["samples"][f"bench_{task}"] for response in sample["resps"]]
        texts = [one for one in answers if isinstance(one, str)]
        logps = [one if isinstance(one, float) else one[0] for one in answers if not isinstance(one, str)]
        found[f"{task}, {shots} shots"] = {
            "requests": len(answers),
            "first": answering[0],
            "seconds": answering[-1],
            "whole": whole,
            "logps": logps,
            "texts": texts,
        }
    return found


def timed(answer, times: list[float]):
    """The same function, whose seconds are noted."""

    def call(*args, **options):
        begin = time.perf_counter()
        result = answer(*args, **options)
        times.append(time.perf_counter() - begin)
        return result

    return call


def opened(worker: str, folder: Path):
    if worker == "lmcraft":
        import jax

        from data.text.tokenizer import load_tokenizer
        from lm.evals.engine.encoding import Encoding
        from lm.evals.engine.model_subject import ModelSubject
        from lm.evals.tasks.harness import as_lm
        from lm.infer.load import load_model
        from lm.parallel.mesh import make_mesh

        mesh = make_mesh({"data": -1})
        jax.set_mesh(mesh)
        encoding = Encoding(load_tokenizer(folder / "workdir"))
        return as_lm(ModelSubject(load_model(folder / "workdir", mesh=mesh), encoding, name="lmcraft"))
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder / "published"), device="cpu", batch_size=int(worker.removeprefix("hf")))


if __name__ == "__main__":
    main()
