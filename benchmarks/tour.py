"""The tour beside the library, on equal work on this machine: how much the fast code gains over the plain one.

python -m benchmarks.tour [--model=large --rounds=3 --loads=train,decode,duplicates,choices]

Both compute in float32 with models of the same sizes. Four loads:

    train       tokens a second of the training step with Muon, on packed rows
    decode      tokens a second of greedy answers to 16 ragged prompts, prompts included
    duplicates  documents a second of the search for near duplicates among docstrings and edited copies of them
    choices     questions a second of log-likelihoods of four answers of a letter, after questions of some length

Each turn is a process of its own, in turns (tour, library, tour, …), so that a slow minute of the machine hits both. A process
does the work once to compile, and --repeats times for its figure, the median. The figure of a side is the median of its rounds.
The last line is one JSON object; `ratio` is the library's figure over the tour's.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPO = Path(__file__).parent.parent
SIDES = ("tour", "library")
SIZES = {
    "small": dict(vocab_size=512, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128),
    "large": dict(vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=3, head_dim=64, mlp_dim=1024),
}
ROWS, LENGTH, NEW_TOKENS = {"small": 8, "large": 16}, 256, 64
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="large", choices=SIZES, help="14 million parameters, or 0.1")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=5, help="timed repetitions in a turn")
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        load, side = options.worker.split("/")
        print(json.dumps(rate(*LOADS[load](side, options.model), options.repeats)))
        return
    if unknown := set(options.loads.split(",")) - set(LOADS):
        parser.error(f"--loads: there is no {', '.join(sorted(unknown))}")
    from lm.runs.provenance import machine

    rates: dict[str, dict[str, float]] = {}
    for load in options.loads.split(","):
        turns: dict[str, list[float]] = {side: [] for side in SIDES}
        for _, side in itertools.product(range(options.rounds), SIDES):
            turns[side].append(in_process(f"{load}/{side}", options.model, options.repeats))
        rates[load] = {side: statistics.median(values) for side, values in turns.items()}
        print(f"{load}: " + ", ".join(f"{side} {value:,.1f} a second" for side, value in rates[load].items()), flush=True)
    ratio = {load: round(sides["library"] / sides["tour"], 2) for load, sides in rates.items()}
    print(json.dumps({"model": SIZES[options.model], "rates": rates, "ratio": ratio, "machine": machine()}))


def in_process(worker: str, model: str, repeats: int) -> float:
    """Return the rate of a load on a side, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tour", f"--worker={worker}", f"--model={model}", f"--repeats={repeats}"]
    done = subprocess.run(command, cwd=REPO, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{worker} failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def rate(work: Work, amount: int, repeats: int) -> float:
    """Return the amount a second of some work: the median of the repeats after a first one, which compiles."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return amount / statistics.median(seconds[1:])


def tour_model(model: str):
    """Return the tour's config, declared weights and values of a size, on the mesh that it sets."""
    import jax

    from tour.mesh import make_mesh
    from tour.model import Config, declare, init

    jax.set_mesh(make_mesh())
    config = Config(**SIZES[model])
    return config, declare(config), init(declare(config), seed=0)


def library_config(model: str):
    """Return the library's training config of a size."""
    from configs.train import default

    config = default.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.steps = ROWS[model], LENGTH, "float32", 100
    config.model.update(SIZES[model], qk_norm="head")
    config.optimizer.update(name="muon", learning_rate=0.006, warmup=20, embedding_rate=15.0, b1=0.9)
    return config


def library_model(model: str):
    """Return the library's model of a size."""
    from flax import nnx

    from lm.model.transformer import build, skeleton
    from lm.train.step import model_config_of

    shape = model_config_of(library_config(model))
    return nnx.merge(skeleton(shape)[0], build(shape, 0))


def train(side: str, model: str) -> tuple[Work, int]:
    """Return the work of a step, and its tokens."""
    import jax

    from tour import text

    random = np.random.default_rng(0)
    documents = [random.integers(4, SIZES[model]["vocab_size"], random.integers(20, 400)).tolist() for _ in range(100)]
    batch = text.batch_of_rows(text.pack(documents, LENGTH)[: ROWS[model]], LENGTH)
    if side == "tour":
        from tour import optimizers, pretrain

        config, weights, params = tour_model(model)
        loss = functools.partial(pretrain.next_token_loss, config, z_loss=1e-4)
        step = pretrain.make_step(loss, weights, optimizers.Recipe(steps=100, learning_rate=0.006))
        state, batch = optimizers.first_state(params), pretrain.on_mesh(batch)
    else:
        from lm.parallel.mesh import make_mesh
        from lm.train.step import make_trainer, state_shardings

        config = library_config(model)
        mesh = make_mesh(config.mesh)
        jax.set_mesh(mesh)
        trainer = make_trainer(config)
        step = jax.jit(trainer.step, donate_argnums=0)
        state = jax.jit(trainer.init, out_shardings=state_shardings(trainer, mesh))()

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return work, ROWS[model] * LENGTH


def decode(side: str, model: str) -> tuple[Work, int]:
    """Return the work of all answers, and their tokens."""
    random = np.random.default_rng(0)
    prompts = [random.integers(4, SIZES[model]["vocab_size"], n).tolist() for n in random.integers(8, 96, 16)]
    if side == "tour":
        from tour.generate import generate

        config, _, params = tour_model(model)
        return lambda: generate(params, config, prompts, NEW_TOKENS), len(prompts) * NEW_TOKENS
    import lm

    built = library_model(model)
    answers = functools.partial(lm.generate, built, None, prompts, max_new_tokens=NEW_TOKENS, temperature=0.0)
    return answers, len(prompts) * NEW_TOKENS


def choices(side: str, model: str) -> tuple[Work, int]:
    """Return the work of the log-likelihoods of all answers, and the number of questions."""
    random = np.random.default_rng(0)
    questions = [random.integers(4, SIZES[model]["vocab_size"], n).tolist() for n in random.integers(60, 200, 40)]
    items = [(question, [[10], [11], [12], [13]]) for question in questions]
    if side == "tour":
        from tour.evaluate import choice_scores

        config, _, params = tour_model(model)
        return lambda: choice_scores(params, config, items, LENGTH), len(items)
    from lm.evals.engine.likelihood import Request, work

    built = library_model(model)
    requests = [Request(question, answer) for question, answers in items for answer in answers]

    def scores() -> dict:
        found: dict = {}
        for batch in work(built, requests, max_length=LENGTH):
            batch.run(set(batch.numbers), found.update)
        assert len(found) == len(requests)
        return found

    return scores, len(items)


def duplicates(side: str, model: str) -> tuple[Work, int]:
    """Return the work of a search, and the number of documents."""
    from tour import text

    random = np.random.default_rng(0)
    documents = [document for _, document in text.definitions()]
    for document in documents[:: 4 if model == "large" else 40]:
        words = document.split(" ")
        words[random.integers(len(words))] = "edited"
        documents.append(" ".join(words))
    if side == "tour":
        return lambda: text.without_near_duplicates(documents), len(documents)
    from data.dedup import near

    def kept() -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            with near.new_part(Path(folder, "part")) as part:
                part.add(documents, range(len(documents)))
            near.find([Path(folder, "part")], Path(folder, "clusters"))
            keep = near.columns(range(len(documents)), Path(folder, "clusters"))["near_duplicate_keep"]
        return [document for document, stays in zip(documents, keep) if stays]

    return kept, len(documents)


LOADS = {"train": train, "decode": decode, "duplicates": duplicates, "choices": choices}

if __name__ == "__main__":
    main()
