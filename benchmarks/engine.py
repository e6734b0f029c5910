"""Decode speed of the engine beside llama.cpp and transformers with the same weights, in one run on this machine.

python -m benchmarks.engine --checkpoint=FOLDER [--folder=engine-benchmark --rounds=3 --cores=1,2 --only=lmcraft/int8,...]

FOLDER is a Hugging Face folder, such as SmolLM2-135M-Instruct. It is exported to GGUF files for llama.cpp, in --folder.
Three loads:

    one   a request of 32 tokens alone. Seconds of a token are the difference between 72 and 8 new tokens, over 64
    many  32 requests at once, prompts of 16-128 tokens, answers of 32-96. Tokens a second count only the tokens asked for, over
          all the time, prompts included. llama.cpp has a slot for each; transformers has one batch, padded on the left
    turns six of these requests, one after another

Each competitor runs in a process of its own that is pinned to so many cores, in turns. Figures are medians over all rounds.
Memory is the largest resident set of the process. The floor is the time to read each weight once (4, 2, 1 or half a byte,
without scales) at the bandwidth that a plain sum over 1 GiB reaches on the same cores. Every turn is a line of turns.jsonl in
--folder: run the same command again to go on after --seconds, or after an interruption. The last line is one JSON object.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
KINDS = {  # bytes of a weight, without scales
    "lmcraft": {"float32": 4, "bfloat16": 2, "int8": 1, "w8a8": 1, "int4": 0.5},
    "llama.cpp": {"bf16": 2, "q8_0": 1, "q4_0": 0.5},
    "hf": {"float32": 4, "bfloat16": 2},
}
PEER = {"bfloat16": "bf16", "int8": "q8_0", "w8a8": "q8_0", "int4": "q4_0"}  # of ours in llama.cpp
SHORT, LONG, PROMPT, MANY, TURNS = 8, 72, 32, 32, 6
LOADS = ("one", "turns", "many")
TARGETS = {
    "one over llama.cpp": 0.8,
    "many over llama.cpp": 1.0,
    "one over hf": 3.0,
    "many over hf": 4.0,
    "many over turns": 6.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("engine-benchmark"))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each competitor")
    parser.add_argument("--cores", default="1", help="numbers of cores, such as 1,2")
    parser.add_argument("--loads", default="one,turns,many")
    parser.add_argument("--only", default="", help="competitors, such as lmcraft/int8,llama.cpp/q8_0")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no turn that would end later than this")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    began = time.monotonic()
    if options.worker:
        pin(int(options.cores))
        rates = bandwidth(int(options.cores)) if options.worker == "bandwidth" else worked(*options.worker.split("/"), options)
        print(json.dumps(rates), flush=True)
        os._exit(0)  # llama.cpp's threads do not end
    prepare(options)
    file = options.folder / "turns.jsonl"
    turns = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kinds = [f"{peer}/{dtype}" for peer, dtypes in KINDS.items() for dtype in dtypes]
    kinds = options.only.split(",") if options.only else kinds
    if unknown := set(kinds) - {f"{peer}/{dtype}" for peer, dtypes in KINDS.items() for dtype in dtypes}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    cores = [int(count) for count in options.cores.split(",")]
    for round_, count, load, kind in itertools.product(
        range(options.rounds), cores, options.loads.split(","), ["bandwidth", *kinds]
    ):
        key = {"round": round_, "cores": count, "load": load, "kind": kind}
        if any(key.items() <= turn.items() for turn in turns) or (kind == "bandwidth" and load != "one"):
            continue
        before = [turn["wall"] for turn in turns if (turn["kind"], turn["load"]) == (kind, load)]
        if time.monotonic() - began + max(before, default=20) > options.seconds:
            continue
        turn = key | child(kind, count, load, options)
        turns.append(turn)
        with file.open("a") as lines:
            lines.write(json.dumps(turn) + "\n")
        shown = ", ".join(f"{value:.2f}" for value in turn["rates"])
        print(f"round {round_ + 1}, {count} cores, {load}, {kind}: {shown}", file=sys.stderr, flush=True)
    from lm.runs.provenance import machine

    found = summary(turns, weights(options.checkpoint))
    print(table(found))
    print(json.dumps({"found": found, "targets": TARGETS, "machine": machine()}))


def prepare(options) -> None:
    """Write the checkpoint as GGUF files, if they are not there."""
    options.folder.mkdir(parents=True, exist_ok=True)
    work = options.folder / "imported"
    commands = [["import", f"--from={options.checkpoint}", f"--workdir={work}"]] if not work.exists() else []
    for dtype in KINDS["llama.cpp"]:
        if not (options.folder / f"{dtype}.gguf").exists():
            commands.append(["export", f"--workdir={work}", f"--to={options.folder / dtype}.gguf", f"--dtype={dtype}"])
    for command in commands:
        subprocess.run([sys.executable, "-m", "lm.convert", *command], cwd=REPO, check=True, stdout=sys.stderr)


def child(kind: str, cores: int, load: str, options) -> dict:
    """Return what a process of its own measured: {"rates", "memory": bytes, "wall": seconds of the process}."""
    command = [sys.executable, "-m", "benchmarks.engine", f"--checkpoint={options.checkpoint.resolve()}"]
    command += [f"--folder={options.folder.resolve()}", f"--worker={kind}", f"--loads={load}", f"--cores={cores}"]
    begin = time.monotonic()
    log = options.folder / "child.log"
    with log.open("w") as err:
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=err, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"rates": json.loads(output.splitlines()[-1]), "memory": usage.ru_maxrss * unit, "wall": time.monotonic() - begin}


def requests(load: str, seed: int) -> list[tuple[list[int], int]]:
    """Return (prompt, number of new tokens) of each request. Prompts are random ids, so that no cache knows them."""
    draw = random.Random(seed)
    shapes = [(draw.randint(16, 128), draw.randint(32, 96)) for _ in range(MANY)] if load == "many" else [(PROMPT, LONG)]
    return [([draw.randrange(300, 40_000) for _ in range(length)], count) for length, count in shapes]


# In the measured process.


def pin(cores: int) -> None:
    """Keep this process, and the threads it will start, on the first `cores` cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def worked(peer: str, dtype: str, options) -> list[float]:
    """Return tokens a second of each repetition."""
    make = {"lmcraft": ours, "llama.cpp": llama_cpp, "hf": transformers}[peer]
    answer = make(options, dtype, int(options.cores))
    if options.loads == "one":
        answer(requests("one", 99)[:1])
        return [alone(answer, seed) for seed in range(3)]
    asked = requests("many", 0)
    if options.loads == "turns":
        answer(requests("one", 99))
        asked = asked[:TURNS]
        seconds = sum(timed(answer, [one]) for one in asked)
    else:
        answer([(prompt, 2 + n // 2) for n, (prompt, _) in enumerate(requests("many", 99))])  # batches of all sizes
        seconds = timed(answer, asked)
    return [sum(count for _, count in asked) / seconds]


def alone(answer, seed: int) -> float:
    """Return tokens a second of one request, prompt not counted."""
    (long, _), (short, _) = requests("one", 2 * seed)[0], requests("one", 2 * seed + 1)[0]
    return (LONG - SHORT) / (timed(answer, [(long, LONG)]) - timed(answer, [(short, SHORT)]))


def timed(answer, asked) -> float:
    """Return the seconds of the answers. Raises: RuntimeError if they do not have the asked lengths."""
    begin = time.perf_counter()
    lengths = answer(asked)
    seconds = time.perf_counter() - begin
    if list(lengths) != [count for _, count in asked]:
        raise RuntimeError(f"answers of {list(lengths)} tokens")
    return seconds


def ours(options, dtype: str, cores: int):
    from lm.files import compile_cache

    compile_cache.switch_on()  # before JAX is imported
    from lm.infer.engine.open import open_engine
    from lm.infer.engine.request import Request
    from lm.infer.engine.room import Capacity

    kind = {"dtype": dtype} if dtype in ("float32", "bfloat16") else {"quantize": dtype}
    rows = MANY if options.loads == "many" else 1
    engine = open_engine(options.checkpoint, Capacity(rows=rows, pages=20 * rows), **kind)
    engine.warm()

    def answer(asked):
        return map(len, engine.generate_all([Request(tuple(prompt), count, temperature=0.0) for prompt, count in asked]))

    return answer


def llama_cpp(options, dtype: str, cores: int):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.folder / f"{dtype}.gguf")
    params.n_parallel = MANY if options.loads == "many" else 1
    params.n_ctx = 256 * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores
    stdout = os.dup(1)
    os.dup2(2, 1)  # llama.cpp's own lines
    server = xllamacpp.Server(params)
    os.dup2(stdout, 1)

    def one(prompt, count):
        fixed = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return server.handle_completions({"prompt": prompt, "n_predict": count, **fixed})["usage"]["completion_tokens"]

    def answer(asked):
        lengths = [0] * len(asked)

        def ask(n):
            lengths[n] = one(*asked[n])

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return lengths

    return answer


def transformers(options, dtype: str, cores: int):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(cores)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=getattr(torch, dtype)).eval()

    def answer(asked):
        width, most = max(len(prompt) for prompt, _ in asked), max(count for _, count in asked)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in asked])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in asked])
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=most, min_new_tokens=most)
        return [min(count, found.shape[1] - width) for _, count in asked]

    return answer


def bandwidth(cores: int) -> list[float]:
    """Return the bytes a second at which `cores` threads read 1 GiB, three times."""
    import numba
    import numpy as np

    @numba.njit(nogil=True, fastmath=True)
    def total(x):
        found = 0
        for value in x:
            found += value
        return found

    parts = np.array_split(np.ones(2**27, np.int64), cores)
    rates = []
    for _ in range(5):
        threads = [threading.Thread(target=total, args=(part,)) for part in parts]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(2**30 / (time.perf_counter() - begin))
    return rates[2:]


# The result.


def weights(checkpoint: Path) -> int:
    """Return the number of weights of a folder of safetensors. A tied head is stored, and read, once."""
    from safetensors import safe_open

    count = 0
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                count += size
    return count


def summary(turns: list[dict], count: int) -> dict:
    """Return {cores: {"bandwidth": GB/s, "peers": {kind: {load: tokens/s, "floor": share, "gib"}}, "ratios"}}."""
    found = {}
    for cores in sorted({turn["cores"] for turn in turns}):
        here = [turn for turn in turns if turn["cores"] == cores]

        def rate(kind: str, load: str, here=here) -> float | None:
            rates = [rate for turn in here if (turn["kind"], turn["load"]) == (kind, load) for rate in turn["rates"]]
            return statistics.median(rates) if rates else None

        speed, peers = rate("bandwidth", "one"), {}
        for peer, dtypes in KINDS.items():
            for dtype, size in dtypes.items():
                kind = f"{peer}/{dtype}"
                memory = {turn["load"]: turn["memory"] for turn in here if turn["kind"] == kind}
                if not memory:
                    continue
                one = rate(kind, "one")
                peers[kind] = {
                    **{load: round(rate(kind, load) or 0, 1) for load in LOADS},
                    "floor": one and speed and round(one * size * count / speed, 3),
                    "gib": {load: round(value / 2**30, 2) for load, value in memory.items()},
                }
        found[str(cores)] = {"bandwidth": speed and round(speed / 1e9, 1), "peers": peers, "ratios": ratios(peers)}
    return found


def ratios(peers: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Return {our dtype: {ratio of TARGETS: value}}. Each: against llama.cpp's same format, and HF's faster."""
    found = {}
    for dtype in KINDS["lmcraft"]:
        mine, values = peers.get(f"lmcraft/{dtype}"), {}
        if not mine:
            continue
        for load in ("one", "many"):
            others = {
                "llama.cpp": [peers[kind][load] for kind in [f"llama.cpp/{PEER.get(dtype)}"] if kind in peers],
                "hf": [entry[load] for kind, entry in peers.items() if kind.startswith("hf/")],
            }
            for name, rates in others.items():
                if mine[load] and any(rates):
                    values[f"{load} over {name}"] = round(mine[load] / max(filter(None, rates)), 2)
        if mine["turns"] and mine["many"]:
            values["many over turns"] = round(mine["many"] / mine["turns"], 2)
        found[dtype] = values
    return found


def table(found: dict) -> str:
    lines = []
    for cores, here in found.items():
        lines.append(f"{cores} core(s), {here['bandwidth']} GB/s; tokens/s of each load, share of the floor, GiB in each load")
        lines.append(" " * 20 + "".join(f"{name:>8}" for name in (*LOADS, "floor", *LOADS)))
        for kind, entry in here["peers"].items():
            shown = [*(entry[load] for load in LOADS), entry["floor"], *(entry["gib"].get(load) for load in LOADS)]
            lines.append(f"{kind:20}" + "".join(f"{value or '-':>8}" for value in shown))
        for dtype, values in here["ratios"].items():
            marks = (f"{name} {value}{'' if value >= TARGETS[name] else ' (below)'}" for name, value in values.items())
            lines.append(f"lmcraft/{dtype}: " + ", ".join(marks))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
