"""Try many values of some keys of train.py or align.py, and find the best: a sweep.

    python -m lm.sweep --config=configs/train/tiny.py --space=rates.py --workdir=sweeps/a --trials=20
    python -m lm.sweep --verb=align --config=configs/align/dpo.py --space=betas.py --workdir=sweeps/b --sampler=random \\
        --trials=10 --config.init_from=runs/chat --config.data.input=pairs.jsonl

--space names a Python file whose get_config() returns the swept keys, each with a distribution of Optuna:

    from optuna.distributions import CategoricalDistribution, FloatDistribution

    def get_config():
        return {
            "optimizer.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "optimizer.name": CategoricalDistribution(["adamw", "muon"]),
        }

--sampler=tpe draws more where results were good (Bergstra et al. 2011), random draws evenly, and grid tries all combinations of
choices and of ranges with a step. --config.KEY=VALUE sets a key of all trials. A trial is a run of the verb in
WORKDIR/trials/NUMBER, so its length is that of the config. It is stopped early if its validation is worse than the median of
the trials before it (--pruner).
Run the same command again to resume after a crash, a kill or a Ctrl-C: finished trials are kept, and an interrupted one goes
on from its checkpoint. More --trials continue a finished sweep. Several machines share a sweep by the same --storage=URL
(postgresql://…, mysql://…) and the same last part of --workdir, in folders of their own.
Writes to the workdir: sweep.json, study.db (Optuna), trials/, sweep.html. Needs: pip install -r requirements/sweep.txt
"""

import copy
import importlib.util
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from lm import cli
from lm.align.checks import check_alignment
from lm.cli import config_files, mistakes
from lm.errors import UserError
from lm.evals.checks import check_evals
from lm.files.saving import write_json
from lm.runs.lock import locked
from lm.train import dial
from lm.train.checks import check_training

FLAGS = flags.FLAGS
NAMES = ("space", "sampler", "verb", "trials", "jobs", "metric", "maximize", "pruner", "storage", "sweep_seed")
PAGE = "sweep.html"
POLL = 0.25  # seconds between looks at the trials
HOPELESS = 3  # failures before any success after which a sweep ends


class Stopped(Exception):
    """A signal asked the sweep to end."""


def define_flags() -> None:
    flags.DEFINE_string("space", None, "File with get_config(), which returns {key: a distribution of Optuna}.")
    flags.DEFINE_enum("sampler", "tpe", ("tpe", "random", "grid"), "How values are chosen.")
    flags.DEFINE_enum("verb", "train", ("train", "align"), "The verb whose runs are the trials.")
    flags.DEFINE_integer("trials", None, "Trials in all; for a grid all combinations.", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Trials that run at once. An accelerator serves one process.", lower_bound=1)
    flags.DEFINE_string("metric", "valid_loss", "The validation metric of metrics.jsonl that decides.")
    flags.DEFINE_boolean("maximize", False, "More of the metric is better, as of valid_reward.")
    pruners = ("median", "halving", "none")
    flags.DEFINE_enum("pruner", "median", pruners, "Stop trials early: worse than the median; successive halving; none.")
    flags.DEFINE_string("storage", None, "URL of Optuna's storage; default: study.db in the workdir.")
    flags.DEFINE_integer("sweep_seed", 0, "Of the values that are drawn.", lower_bound=0)


def main() -> None:
    config, workdir, arguments = parse(sys.argv)
    space = load_space(config)
    check(config, workdir, space)
    from optuna.distributions import distribution_to_json

    from lm.sweep.study import Study, grid

    total = FLAGS.trials or (len(grid(space)) if FLAGS.sampler == "grid" else None)
    if total is None:
        raise UserError(f"--trials is missing: how many trials --sampler={FLAGS.sampler} makes, such as --trials=20")
    record = {
        "verb": FLAGS.verb,
        "arguments": arguments,
        "method": FLAGS.sampler,
        "space": {name: json.loads(distribution_to_json(distribution)) for name, distribution in space.items()},
        "metric": FLAGS.metric,
        "maximize": FLAGS.maximize,
        "seed": FLAGS.sweep_seed,
    }
    with locked(workdir):
        check_record(workdir, record)
        study, command = Study(workdir, space, FLAGS), [f"{FLAGS.verb}.py", *arguments]
        sweep(study, workdir, command, total, config.steps)
        draw(study, workdir, command)
        show(study, workdir)


def parse(argv: list[str]) -> tuple[Any, Path, list[str]]:
    """Return (config, workdir, arguments of the trials). Raises: UserError, as the verb itself does."""
    name = argv[0]
    argv[0] = next((arg.partition("=")[2] for arg in argv if arg.startswith("--verb=")), "train") + ".py"
    try:
        config, workdir = cli.parse(argv)
    finally:
        argv[0] = name
    if "://" in str(FLAGS.workdir):
        raise UserError(f"--workdir={FLAGS.workdir}: a sweep needs a folder, not a bucket")
    arguments, is_config = [], False
    for argument in argv[1:]:  # --config and --config.KEY, and the values that follow them
        if argument.startswith("-"):
            is_config = argument.lstrip("-").removeprefix("no").startswith("config")
        if is_config:
            arguments.append(argument)
    return config, workdir, arguments


def load_space(config) -> Mapping[str, Any]:
    """Return the distributions of --space. Raises: UserError: it names no distributions of keys of the config."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a sweep needs optuna: pip install -r requirements/sweep.txt")
    from optuna.distributions import BaseDistribution

    if not FLAGS.space or not Path(FLAGS.space).is_file():
        raise UserError(f"--space={FLAGS.space or ''}: name a file with the keys to sweep and their values; --help shows one")
    try:
        space = config_files.load(FLAGS.space)
    except (TypeError, ValueError) as error:  # of Optuna, such as for a range whose ends are exchanged
        raise UserError(f"--space={FLAGS.space}: {error}") from None
    if not isinstance(space, Mapping) or not space:
        raise UserError(f"--space={FLAGS.space}: get_config() must return {{key: a distribution of Optuna}}")
    for name, distribution in space.items():
        if name not in set(config_files.listed(config)):
            raise UserError(f"--space={FLAGS.space}: {name}: no such key in the config{mistakes.nearest(str(name), config)}")
        if not isinstance(distribution, BaseDistribution):
            raise UserError(f"--space={FLAGS.space}: {name} is {distribution!r}, not a distribution of optuna.distributions")
        if name in config_files.given_keys():
            raise UserError(f"--config.{name} is given, and --space sweeps it: leave one of them out")
    return space


def check(config, workdir: Path, space: Mapping[str, Any]) -> None:
    """Raise UserError if a trial with a choice, or with an end of a range, could not begin."""
    if not FLAGS.metric.startswith("valid_"):
        raise UserError(f"--metric={FLAGS.metric}: name a validation metric, such as valid_loss or valid_reward")
    if config.get("method") == "safety":
        raise UserError("method=safety makes several runs, which a sweep cannot compare: sweep the method of one of them")
    if FLAGS.metric == "valid_loss" and config.data.valid_fraction == 0:
        raise UserError("data.valid_fraction=0: the trials are compared by their validation; set it above 0")
    probe = workdir / "trials" / "probe"  # which is not made
    values = {name: getattr(of, "choices", None) or (of.low, of.high) for name, of in space.items()}
    for name, value in ((name, value) for name, ends in values.items() for value in ends):
        trial = copy.deepcopy(config)  # with the types of keys that are None
        try:
            trial.update_from_flattened_dict({name: value})
        except (TypeError, ValueError):
            type_ = config_files.type_of(config, name)
            raise UserError(f"--space={FLAGS.space}: {name}={value!r} must be of type {type_}") from None
        if FLAGS.verb == "align":
            check_alignment(trial, probe)
        else:
            dial.shape(trial, config_files.given_keys() | {name})
            check_training(trial, probe)
            check_evals(trial.evals)


def check_record(workdir: Path, record: dict) -> None:
    """Write sweep.json. Raises UserError if the workdir holds another sweep."""
    path = workdir / "sweep.json"
    if not path.exists():
        if (workdir / "config.json").exists():
            raise UserError(f"--workdir={workdir} is that of a run: name a new folder for the sweep")
        write_json(path, record)
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is damaged: delete it to record the sweep again") from None
    for name, value in json.loads(json.dumps(record)).items():
        if saved.get(name, value) != value:  # older versions recorded no space; then Optuna compares it with the trials
            raise UserError(
                f"{name} is {saved[name]} in {path} and {value} in this command: another sweep; use another --workdir"
            )


def sweep(study, workdir: Path, command: list[str], total: int, steps: int | None) -> None:
    """Run trials until there are `total`. Prints a line for each, and draws the page after each.

    command: the verb and the arguments of all trials. steps: of a trial, unless it is swept.
    """
    from lm.sweep.trials import run

    running, waiting, failed = {}, study.interrupted(), 0  # running: {a trial's generator: (the trial, its process)}
    before = {signum: signal.signal(signum, _stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            while len(running) < FLAGS.jobs and (waiting or len(study.trials()) < total):
                if (trial := waiting.pop(0) if waiting else study.next()) is None:
                    break
                params, folder = study.params(trial), workdir / "trials" / f"{trial.number:04d}"
                trial.set_user_attr("folder", f"trials/{folder.name}")
                print(f"trial {trial.number}: {_text(params)}", flush=True)
                own = [*command, *arguments_of(params)]
                running[run(trial, folder, own, FLAGS.metric, params.get("steps", steps))] = trial, None
            if not running:
                break
            for process, (trial, _) in list(running.items()):
                try:
                    running[process] = trial, next(process)
                except StopIteration as ended:
                    del running[process]
                    failed += tell(study, trial, *ended.value)
                    draw(study, workdir, command)
            if failed >= HOPELESS and study.best() is None:
                raise UserError(f"{failed} trials failed and none succeeded (see {workdir / 'trials'})")
            time.sleep(POLL)
    except Stopped as stopped:
        _end(running)
        name = signal.Signals(stopped.args[0]).name
        cli.fail(f"stopped by {name}; its trials have saved their state, run the same command to resume", 128 + stopped.args[0])
    finally:
        _end(running)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def tell(study, trial, state, value: float | None, why: str) -> bool:
    """Record and print the result of a trial. Return whether it failed."""
    trial.set_user_attr("why", why)
    study.study.tell(trial, value, state=state)
    number = f" {FLAGS.metric} {value:.6g}" if value is not None else ""
    print(f"trial {trial.number}: {state.name.lower()}{number}" + (f": {why}" if why else ""), flush=True)
    return state.name == "FAIL"


def draw(study, workdir: Path, command: list[str]) -> None:
    """Write sweep.html."""
    from lm.reports.sweep import write

    def rank(trial) -> tuple:
        value = trial.value or 0.0
        order = ("COMPLETE", "PRUNED", "RUNNING", "FAIL")
        return order.index(trial.state.name), -value if FLAGS.maximize else value, trial.number

    best = study.best()
    own = arguments_of(best.params) if best else []
    trials = sorted(study.trials(), key=rank)
    write(workdir / PAGE, trials, best, FLAGS.metric, ["python", *command, *own, "--workdir=DIR"])


def show(study, workdir: Path) -> None:
    """Print the best trial. Raises: UserError: none has finished."""
    best, count = study.best(), len(study.trials())
    if best is None:
        raise UserError(f"none of {count} trials finished; {workdir / PAGE} says why")
    print(f"\nresult  trial {best.number} is the best of {count}: {best.value:.6g} with {_text(best.params)}")
    print(f"report  {workdir / PAGE}", flush=True)


def arguments_of(params: Mapping[str, Any]) -> list[str]:
    """Return --config.KEY=VALUE for the values of a trial."""
    return [f"--config.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in params.items()]


def _end(running: dict) -> None:
    """Ask the trials to save and end, and wait for them."""
    for _, process in running.values():
        if process is not None:
            process.terminate()
    for trial in running:
        trial.close()


def _text(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items())


def _stop(signum, frame) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one ends it at once
    raise Stopped(signum)


def usage() -> None:
    lines = [f"--{name}: {FLAGS[name].help}" for name in NAMES]
    print("\n".join([cli.help_text(__doc__, ["train.py", *sys.argv[1:]]), *lines]))


if __name__ == "__main__":
    sys.argv[0] = "lm.sweep"
    cli.define_flags()
    define_flags()
    with cli.guard():
        (usage if cli.wants_help(sys.argv) else main)()
