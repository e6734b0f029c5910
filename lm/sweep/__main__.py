"""Try many values of some keys of train.py or align.py, and find the best: a sweep.

    python -m lm.sweep --config=configs/train/tiny.py --workdir=sweeps/a --trials=20 \\
        --tpe 'optimizer.learning_rate=1e-4..1e-2:log'
    python -m lm.sweep --config=configs/train/tiny.py --workdir=sweeps/b --grid 'optimizer.learning_rate=1e-4..1e-2:log:5' \\
        'optimizer.name=adamw,muon'
    python -m lm.sweep --verb=align --config=configs/align/dpo.py --workdir=sweeps/c --config.init_from=runs/chat \\
        --config.data.input=pairs.jsonl --random 'preference.beta=0.01..1:log' --trials=10

After --grid, --random or --tpe come the keys and their values:
    KEY=LOW..HIGH        a range, of whole numbers if the key is one
    KEY=LOW..HIGH:log    even in the logarithm
    KEY=LOW..HIGH:N      N values of the range, for --grid; also LOW..HIGH:log:N
    KEY=A,B,C            these values
--grid tries all combinations, --random draws values, and --tpe draws more where results were good (Bergstra et al. 2011).
--config.KEY=VALUE sets a key of all trials. A trial is a run of the verb in WORKDIR/trials/NUMBER, so its length is that of
the config. It is stopped early if its validation is worse than the median of the trials before it (--pruner).
Run the same command again to resume after a crash, a kill or a Ctrl-C: finished trials are kept, and an interrupted one goes
on from its checkpoint. More --trials continue a finished sweep. Several machines share a sweep by the same --storage=URL
(postgresql://…, mysql://…) and the same last part of --workdir, in folders of their own.
Writes to the workdir: sweep.json, study.db (Optuna), trials/, sweep.html. Needs: pip install -r requirements/sweep.txt
"""

import importlib.util
import json
import re
import signal
import sys
import time
from pathlib import Path

from absl import flags

from lm import cli
from lm.align.checks import check_alignment
from lm.cli import config_files
from lm.errors import UserError
from lm.evals.checks import check_evals
from lm.files.saving import write_json
from lm.runs.lock import locked
from lm.sweep.space import Key, ends, grid, parse_key, set_value
from lm.train import dial
from lm.train.checks import check_training

METHODS, PRUNERS = ("grid", "random", "tpe"), ("median", "halving", "none")
PAGE = "sweep.html"
POLL = 0.25  # seconds between looks at the trials
HOPELESS = 3  # failures before any success after which a sweep ends


class Stopped(Exception):
    """A signal asked the sweep to end."""


def define_flags() -> None:
    flags.DEFINE_enum("verb", "train", ("train", "align"), "The verb whose runs are the trials.")
    flags.DEFINE_integer("trials", None, "Trials in all; for --grid all combinations.", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Trials that run at once. An accelerator serves one process.", lower_bound=1)
    flags.DEFINE_string("metric", "valid_loss", "The validation metric of metrics.jsonl that decides.")
    flags.DEFINE_boolean("maximize", False, "More of the metric is better, as of valid_reward.")
    flags.DEFINE_enum("pruner", "median", PRUNERS, "Stop trials early: worse than the median; successive halving; none.")
    flags.DEFINE_string("storage", None, "URL of Optuna's storage; default: study.db in the workdir.")
    flags.DEFINE_integer("sweep_seed", 0, "Of the values that are drawn.", lower_bound=0)


def split(argv: list[str]) -> tuple[str, list[str], list[str]]:
    """Return (method, arguments of its keys, the other arguments). Raises UserError without exactly one method.

    The keys of a method are the arguments after it, up to the next one that begins with a dash. argparse takes one of these
    too if it has a space, such as the path of a file.
    """
    method, specs, others = "", [], []
    is_key = False
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in METHODS:
            if method not in ("", name):
                raise UserError(f"--{method} and --{name}: give one of them")
            method, is_key = name, True
            specs += [value] if equals else []
        elif is_key and not argument.startswith("-"):
            specs.append(argument)
        else:
            is_key = False
            others.append(argument)
    if not method or not specs:
        missing = f"--{method} names no key" if method else "which keys? give --grid, --random or --tpe"
        raise UserError(f"{missing}: --tpe 'optimizer.learning_rate=1e-4..1e-2:log' --trials=20; --help tells more")
    return method, specs, others


def parse(argv: list[str]):
    """Return (config, workdir, method, keys, arguments of the trials). Raises UserError, as the verb itself does."""
    method, specs, others = split(argv[1:])
    verb = next((arg.partition("=")[2] for arg in others if arg.startswith("--verb=")), "train")
    names = [spec.partition("=")[0] for spec in specs]
    flag_names = {arg.partition("=")[0].lstrip("-") for arg in others}
    for name in names:
        if f"config.{name}" in flag_names:
            raise UserError(f"--config.{name} is given, and --{method} sweeps it: leave one of them out")
        if names.count(name) > 1:
            raise UserError(f"--{method} has {name} twice: give it once")
        if name == "workdir" or name.startswith("config."):
            raise UserError(f"{name}: write the key alone, such as {name.removeprefix('config.')}=1e-4..1e-2:log")
    # The verb's parser tells of unknown keys: it gets each key with the first of its values.
    probes = [f"--config.{re.split(r',|[.][.]', spec)[0]}" if "=" in spec else f"--config.{spec}=" for spec in specs]
    before = sys.argv[:]
    sys.argv[:] = [f"{verb}.py", *others, *probes]
    try:
        config, workdir = cli.parse(sys.argv)
        arguments = [arg for arg in sys.argv[1:] if arg not in probes]
    finally:
        sys.argv[:] = before
    if "://" in str(flags.FLAGS.workdir):
        raise UserError(f"--workdir={flags.FLAGS.workdir}: a sweep needs a folder, not a bucket")
    keys = [parse_key(spec, config, method == "grid") for spec in specs]
    return config, workdir, method, keys, _of_the_verb(arguments)


def _of_the_verb(arguments: list[str]) -> list[str]:
    """Return --config and --config.KEY, with the values that follow them."""
    own, follows = [], False
    for argument in arguments:
        if argument.startswith("-"):
            follows = False
            if argument.lstrip("-").removeprefix("no").startswith("config"):
                own.append(argument)
                follows = "=" not in argument and argument.lstrip("-") == "config"
        elif follows:
            own.append(argument)
    return own


def check(config, workdir: Path, keys: list[Key]) -> None:
    """Raise UserError if a trial with a value of a key, or with an end of its range, could not begin."""
    options = flags.FLAGS
    for package in ("optuna", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"a sweep needs {package}: pip install -r requirements/sweep.txt")
    if not options.metric.startswith("valid_"):
        raise UserError(f"--metric={options.metric}: name a validation metric, such as valid_loss or valid_reward")
    if config.get("method") == "safety":
        raise UserError("method=safety makes several runs, which a sweep cannot compare: sweep the method of one of them")
    if options.metric == "valid_loss" and config.data.valid_fraction == 0:
        raise UserError("data.valid_fraction=0: the trials are compared by their validation; set it above 0")
    probe = workdir / "trials" / "probe"  # which is not made
    for key in keys:
        for value in ends(key):
            trial = config.copy_and_resolve_references()
            trial.unlock()
            set_value(trial, key.name, value)
            if options.verb == "align":
                check_alignment(trial, probe)
                continue
            dial.shape(trial, config_files.given_keys() | {key.name})
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
        if saved.get(name) != value:
            raise UserError(
                f"{name} is {saved.get(name)} in {path} and {value} in this command: another sweep; use another --workdir"
            )


def main() -> None:
    config, workdir, method, keys, arguments = parse(sys.argv)
    check(config, workdir, keys)
    options = flags.FLAGS
    total = options.trials or (len(grid(keys)) if method == "grid" else None)
    if total is None:
        raise UserError(f"--trials is missing: how many trials --{method} makes, such as --trials=20")
    record = {
        "verb": options.verb,
        "arguments": arguments,
        "method": method,
        "keys": [key._asdict() for key in keys],
        "metric": options.metric,
        "maximize": options.maximize,
        "seed": options.sweep_seed,
    }
    with locked(workdir):
        check_record(workdir, record)
        from lm.sweep.study import open_study

        study = open_study(workdir, method, keys, options)
        sweep(study, workdir, arguments, total, config.steps)


def sweep(study, workdir: Path, arguments: list[str], total: int, steps: int) -> None:
    """Run trials until there are `total`. Prints a line for each, and draws the page after each."""
    from lm.sweep.trials import Running, argument

    options, running, failed = flags.FLAGS, [], 0
    waiting = study.interrupted()

    def started(trial) -> Running:
        params = study.params(trial)
        folder = workdir / "trials" / f"{trial.number:04d}"
        trial.set_user_attr("folder", str(folder.relative_to(workdir)))
        command = [*arguments, *(argument(name, value) for name, value in params.items())]
        print(f"trial {trial.number}: {_told(params)}", flush=True)
        return Running(trial, folder, command, options.verb, options.metric, params.get("steps", steps))

    before = {signum: signal.signal(signum, _stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        while True:
            while len(running) < options.jobs:
                if not waiting and len(study.trials()) < total and (new := study.next()) is not None:
                    waiting.append(new)
                if not waiting:
                    break
                running.append(started(waiting.pop(0)))
            if not running:
                break
            for run in list(running):
                ended = run.poll()
                if ended is None:
                    continue
                running.remove(run)
                state, value, why = ended
                if why:
                    run.trial.set_user_attr("why", why)
                study.study.tell(run.trial, value, state=state)
                print(f"trial {run.trial.number}: {_ending(state.name.lower(), value, why)}", flush=True)
                failed += state.name == "FAIL"
                draw(study, workdir, arguments)
                if failed >= HOPELESS and study.best() is None:
                    raise UserError(f"{failed} trials failed and none succeeded, the last: {why} (see {run.log})")
            time.sleep(POLL)
    except Stopped as stopped:
        for run in running:
            run.stop()
        for run in running:
            run.wait()
        number = stopped.args[0]
        name = signal.Signals(number).name
        cli.fail(f"stopped by {name}; its trials have saved their state, run the same command to resume", 128 + number)
    finally:
        for run in running:
            run.stop()
        for signum, handler in before.items():
            signal.signal(signum, handler)
    show(draw(study, workdir, arguments), workdir)


def draw(study, workdir: Path, arguments: list[str]) -> list:
    """Write sweep.html. Return the rows of its table."""
    from lm.reports.sweep import write
    from lm.sweep.study import rows
    from lm.sweep.trials import argument

    options, best, trials, command = flags.FLAGS, study.best(), rows(study), None
    if best is not None:
        values = [argument(key.name, best.params[key.name]) for key in study.keys]
        command = ["python", f"{options.verb}.py", *arguments, *values, "--workdir=DIR"]
    write(
        workdir / PAGE,
        {
            "title": f"Sweep: {workdir.name}",
            "metric": options.metric,
            "maximize": options.maximize,
            "trials": trials,
            "importance": study.importance(),
            "command": command,
        },
    )
    return trials


def show(trials: list, workdir: Path) -> None:
    """Print the best trial and the page."""
    best = next((row for row in trials if row["best"]), None)
    if best is None:
        raise UserError(f"none of {len(trials)} trials finished; {workdir / PAGE} says why")
    print(f"\nresult  trial {best['number']} is the best of {len(trials)}: {best['value']:.6g} with {_told(best['params'])}")
    print(f"report  {workdir / PAGE}", flush=True)


def _told(params: dict) -> str:
    return ", ".join(f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items())


def _ending(state: str, value: float | None, why: str) -> str:
    number = f" {flags.FLAGS.metric} {value:.6g}" if value is not None else ""
    return f"{state}{number}" + (f": {why}" if why else "")


def _stop(signum, frame) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one ends it at once
    raise Stopped(signum)


def usage() -> None:
    names = ("verb", "trials", "jobs", "metric", "maximize", "pruner", "storage", "sweep_seed")
    print("\n".join([cli.help_text(__doc__, ["train.py", *sys.argv[1:]]), *(f"--{n}: {flags.FLAGS[n].help}" for n in names)]))


if __name__ == "__main__":
    sys.argv[0] = "lm.sweep"
    cli.define_flags()
    define_flags()
    with cli.guard():
        (usage if cli.wants_help(sys.argv) else main)()
