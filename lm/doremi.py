"""Find the shares of a mixture's sources with small models: DoReMi (Xie et al. 2023).

    python -m lm.doremi --config=configs/train/small.py --workdir=DIR --config.data.input=CORPUS/dataset [--config.KEY=VALUE …]
    python train.py … --config.data.weights=DIR/weights.json

The config is one of train.py, with a model much smaller than the one to be trained. A reference model is trained with the
config's own data.weights (default: by size) in DIR/reference. A proxy model of the same size is trained in DIR/proxy; it gives
more weight to sources where its loss is above the reference's. The mean weights are the result. Both runs take `steps` steps.
Run the same command again to resume after a crash, a kill or a Ctrl-C.
Writes to the workdir: weights.json, report.html, report.json, reference/ and proxy/ (each as train.py does, without a report).
"""

import functools
import time
from pathlib import Path

from lm import cli
from lm.cli import config_files
from lm.errors import UserError
from lm.evals.checks import check_evals
from lm.files.saving import write_json
from lm.parallel.join import join
from lm.runs.lock import locked
from lm.runs.workdir import check_result, save_record
from lm.train import dial
from lm.train.checks import check_training


def main(config, workdir: Path) -> None:
    dial.shape(config, config_files.given_keys())

    def check() -> None:
        check_training(config, workdir / "reference")
        check_evals(config.evals)

    join(check)  # then JAX loads
    with locked(workdir):
        search(config, workdir)


def search(config, workdir: Path) -> None:
    import jax

    from data.text.batches import parse_sizes
    from data.text.pipeline import prepare_text
    from data.text.weights import resolved
    from lm.parallel import hosts
    from lm.parallel.mesh import check_fit, make_mesh
    from lm.reports.doremi import write
    from lm.reports.next_steps import show
    from lm.train import events, loop
    from lm.train.doremi import average, proxy_trainer
    from lm.train.events.validation import Evaluator, valid_batches
    from lm.train.feed import Feed
    from lm.train.fit import check_memory
    from lm.train.rates import choose_rate
    from lm.train.start import adopt, check_config, initial_params
    from lm.train.step import make_trainer, model_config_of

    begin = time.perf_counter()
    runs = reference, proxy = workdir / "reference", workdir / "proxy"
    adopt(config, reference)
    dial.horizon(config, config_files.given_keys())
    mesh = make_mesh(config.mesh)
    growth = parse_sizes(config.batch_warmup, config.batch_size)
    for rows in growth.rows:
        check_fit(mesh, model_config_of(config), rows, config.accumulate, config.sequence_length)
    choose_rate(config)
    config.data.weights = resolved(config.data.weights)
    for run in runs:
        check_config(config, run)
        hosts.from_first(functools.partial(check_result, config, run))
    check_memory(config, mesh)

    tokenizer, dataset, stages = prepare_text(config, reference, first=hosts.is_first())
    given, even, uniform = batches(config, dataset, growth)
    valid = valid_batches(dataset, config.batch_size) if config.data.valid_fraction > 0 else None
    if hosts.is_first():
        for run in runs:
            save_record(config, run)

    with jax.set_mesh(mesh):
        trainer, start = make_trainer(config), functools.partial(initial_params, config, mesh, tokenizer)
        validate = valid and Evaluator(trainer, valid, mesh, tokenizer, config.model.vocab_size)
        stream = Feed(given, mesh)
        first = loop.train(config, trainer, mesh, stream, reference, events.usual(config, validate), start)
        trainer, stream = proxy_trainer(config, uniform), Feed(even, mesh)
        second = loop.train(config, trainer, mesh, stream, proxy, events.usual(config), start, first["params"])
        weights = dict(zip(uniform, jax.device_get(average(second["sources"])).tolist()))
    if hosts.is_first():
        weights = {name: weights[name] for name, share in uniform.items() if share}
        write_json(workdir / "weights.json", weights)
        stages |= {"reference": first["seconds"], "proxy": second["seconds"]}
        stages["start and other"] = time.perf_counter() - begin - sum(stages.values())
        write(workdir, config, given.stages[0].shares, weights, first, second, stages)
        show(workdir)


def batches(config, dataset: Path, growth) -> tuple:
    """Return (batches of the reference, batches of the proxy with as many rows of each source, {source: its share in these}).

    growth: of `parse_sizes`. Raises: UserError if there is only one source.
    """
    from data.text.batches import TextBatches
    from data.text.weights import Rule, Weights, parse_weights
    from lm.train.start import choose_steps

    weights = parse_weights(config.data.weights)
    read = functools.partial(TextBatches, dataset, batch_size=config.batch_size, seed=config.seed)
    choose_steps(config, read(weights=Weights(weights)).num_rows, growth)
    read = functools.partial(read, growth=growth)
    given = read(weights=Weights(weights, config.steps))
    names = [name for name in given.ranges if any(name in stage.shares for stage in given.stages)]
    if len(names) < 2:
        raise UserError(
            f"data.input: all rows are of the source {names[0]!r}, and DoReMi weighs several; name a dataset of curate.py "
            "whose --config.input has several sources (web=FILES,books=FILES)"
        )
    uniform = {name: 1 / len(names) if name in names else 0.0 for name in given.ranges}
    return given, read(weights=Weights([Rule(0.0, "shares", uniform)], config.steps), with_sources=True), uniform


if __name__ == "__main__":
    with cli.command(__doc__) as arguments:
        main(*arguments)
