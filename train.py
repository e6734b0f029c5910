"""Pretrain a language model: text -> tokenizer -> packed dataset -> training -> report.

    python train.py --config=configs/train/tiny.py --workdir=runs/tiny [--config.KEY=VALUE ...]
    python train.py --config=configs/train/tiny.py --describe    # parameters, FLOPs, memory; or --describe=json
    python train.py --config=configs/train/1b.py --plan=v5e:4x4   # compile for TPUs that are not here: memory, time, MFU
    python train.py --config=configs/train/1b.py --plan=auto:v5e:4x4   # find the best mesh, remat policy and slices

Reads --config.data.input (a folder, file, glob of .txt .md .jsonl .parquet, or a TFDS name; none: the code and docs of this
Python installation). Trains a SentencePiece tokenizer on it unless --config.tokenizer names one. Trains a decoder on the mesh
of --config.mesh, from random weights or from --config.init_from (a workdir, a Hugging Face folder or a GGUF file).
Workdir, input, tokenizer and init_from may be in a bucket: gs://… or s3://… (docs/buckets.md).

The keys that matter most, as --config.KEY=VALUE:
  data.input               text to read; none: this Python installation
  steps, epochs            the length of the run
  dial.depth               chooses model, batch, rates and length by one number
  model.num_layers, model.embed_dim, model.vocab_size
  sequence_length, batch_size   tokens of a row, rows of an update
  optimizer.name, optimizer.learning_rate   normuon, muon, adamw, lion or a file's function; none: a rate for the size
  init_from                continue from a model
  objective                a loss of your own: FILE.py:FUNCTION
  accumulate, model.remat  more slices, or full: less memory
  mesh.fsdp, mesh.tensor   split the model over devices

Run the same command again to resume after a crash, a kill or a Ctrl-C. configs/train/default.py explains every key,
lm/config/model.py those of the model.
Writes to the workdir: config.json, tokenizer.model, data/, checkpoints/, metrics.jsonl, tensorboard/, report.html, report.json.
"""

import functools
import json
import time
from pathlib import Path

from absl import flags

from lm import cli
from lm.cli import config_files
from lm.parallel.join import join
from lm.runs.lock import locked
from lm.runs.workdir import finished, save_record
from lm.train import dial
from lm.train.checks import check_training
from lm.train.values import check_values


def main(config, workdir: Path | None) -> None:
    dial.shape(config, config_files.given_keys())
    if flags.FLAGS.describe:
        check_values(config)
        from lm.train.describe import choose_elsewhere, describe, table
        from lm.train.start import adopt

        choose_elsewhere(config)
        adopt(config, None)
        dial.horizon(config, config_files.given_keys())
        sizes = describe(config)
        print(json.dumps(sizes, indent=1) if flags.FLAGS.describe == "json" else table(sizes))
        return
    if flags.FLAGS.plan:
        check_values(config)
        from lm.train.plan.command import run

        run(config, flags.FLAGS.plan, flags.FLAGS.plan_tries, workdir)
        return

    def check() -> None:
        check_training(config, workdir)
        if config.evals.tasks:
            from lm.evals.checks import check_evals

            check_evals(config.evals)

    join(check)  # then JAX loads
    with locked(workdir):
        train(config, workdir)


def train(config, workdir: Path) -> None:
    import jax

    from data.text.batches import TextBatches, parse_sizes
    from data.text.pipeline import prepare_text, summary
    from data.text.weights import Weights, parse_weights, resolved, warnings_of
    from lm.evals import in_loop
    from lm.parallel import hosts
    from lm.parallel.context import sequences_whole
    from lm.parallel.mesh import check_fit, make_mesh
    from lm.reports.next_steps import show
    from lm.runs.own_code import keep_own_code
    from lm.train import events, loop
    from lm.train.events.validation import Evaluator, valid_batches
    from lm.train.feed import Feed
    from lm.train.fit import check_memory
    from lm.train.optimizers.turns import choose_turns
    from lm.train.rates import choose_rate
    from lm.train.start import adopt, check_config, choose_slices, choose_steps, initial_params
    from lm.train.step import make_trainer, model_config_of

    begin = time.perf_counter()
    adopt(config, workdir)
    dial.horizon(config, config_files.given_keys())
    mesh = make_mesh(config.mesh)
    growth = parse_sizes(config.batch_warmup, config.batch_size)
    for chosen in (choose_slices(config, mesh), choose_turns(config)):
        if chosen and hosts.is_first():
            print(chosen, flush=True)
    for rows in growth.rows:
        check_fit(mesh, model_config_of(config), rows, config.accumulate, config.sequence_length)
    check_config(config, workdir)
    choose_rate(config)
    config.data.weights = resolved(config.data.weights)
    if hosts.from_first(lambda: finished(config, workdir)):
        if hosts.is_first():
            show(workdir)
        return
    check_memory(config, mesh)
    weights = parse_weights(config.data.weights)
    evals = in_loop.open_evals(config)

    tokenizer, dataset, stages = prepare_text(config, workdir, first=hosts.is_first())
    for line in summary(config, dataset) if hosts.is_first() else ():
        print(line, flush=True)
    read = functools.partial(TextBatches, dataset, "train", batch_size=config.batch_size, seed=config.seed)
    choose_steps(config, read(weights=Weights(weights)).num_rows, growth)
    batches = read(weights=Weights(weights, config.steps), growth=growth)
    if hosts.is_first():
        save_record(config, workdir)
        keep_own_code(config, workdir)
    rows = growth.start(config.steps) / max(1, config.steps)
    warnings = warnings_of(weights, batches.sizes, batches.epochs(config.steps), config.steps, rows)
    for line in warnings if hosts.is_first() else ():
        print(f"warning: {line}", flush=True)
    valid = valid_batches(dataset, config.batch_size) if config.data.valid_fraction > 0 else None

    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        start = functools.partial(initial_params, config, mesh, tokenizer)
        stream = Feed(batches, mesh)
        validate = valid and Evaluator(trainer, valid, mesh, tokenizer, config.model.vocab_size)
        measure = in_loop.measuring(evals, workdir, trainer.graph, tokenizer)
        result = loop.train(config, trainer, mesh, stream, workdir, events.usual(config, validate, measure), start)
    stages["training"] = result["seconds"]
    from lm.reports.train import drawn, mixture, write_report  # here, because Matplotlib comes with it

    stages["start and other"] = time.perf_counter() - begin - sum(stages.values())
    with jax.set_mesh(mesh), sequences_whole(result["params"]) as params:
        samples = drawn(config, params, tokenizer, dataset)
    if hosts.is_first():
        sources = mixture(batches, config.steps, warnings)
        write_report(config, workdir, dataset, tokenizer, result, stages, samples, sources)
        show(workdir)


if __name__ == "__main__":
    cli.define_choice("describe", ("table", "json"), "Print parameters, FLOPs and memory of the run instead of making it.")
    flags.DEFINE_string(
        "plan", None, "Compile the step for a TPU topology that is not attached, and say if it fits and how fast."
    )
    flags.DEFINE_integer("plan_tries", 3, "How many combinations --plan=auto:TOPOLOGY compiles.")
    with cli.command(__doc__, unless=("describe", "plan")) as arguments:
        main(*arguments)
