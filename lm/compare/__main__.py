"""Compare runs of two or more arms over seeds: keys and code that differ, curves, and a verdict with an interval.

python -m lm.compare runs/adamw-0 runs/adamw-1 runs/adamw-2 runs/muon-0 runs/muon-1 runs/muon-2 [--measure=bits_per_byte]

Runs whose configs and own code differ only in `seed` are one arm, and the first run belongs to the first arm. Each other arm is
compared with it by a paired t test over the seeds that both have. Commits are compared by git, if it has them. The curves of
all runs are written to --out.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from scipy.special import stdtr, stdtrit

from lm import cli
from lm.align.alarms import is_better
from lm.compare import code
from lm.errors import UserError, no_model
from lm.reports import runs as runs_page
from lm.reports.run_results import basis_of
from lm.runs.own_code import own_code
from lm.runs.workdir import flat, kind_of, read_config, read_object
from lm.train.history import load_metrics

FLAGS = flags.FLAGS
flags.DEFINE_string("measure", "", "A held-out measure of metrics.jsonl; default: bits_per_byte, else the loss of the method.")
flags.DEFINE_float("alpha", 0.05, "Probability of a difference between equal arms that is called one.", 0.0, 1.0)
flags.DEFINE_string("out", "compare.html", "The page with the curves of all runs.")

NOT_AN_ARM = ("seed", "trackers")  # keys that runs of one arm may differ in


class Run(NamedTuple):
    """A run: its config by dotted key, the version of its code, and the measures and the step of its last validation.

    own: the files of the user that it was made with, by key.
    """

    folder: Path
    config: dict[str, Any]
    code: str
    values: dict[str, float]
    step: int
    own: dict[str, str] = {}  # noqa: RUF012 (nobody changes it)


class Verdict(NamedTuple):
    """A paired difference over n seeds: its mean, the interval with coverage 1 − α, and the two-sided p; None for n < 2."""

    n: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_t(before: Sequence[float], after: Sequence[float], alpha: float = 0.05) -> Verdict:
    """Return the paired t test (Student 1908): t = d̄ / (s/√n) of the differences d = after − before, with n − 1 degrees of
    freedom. Equal differences have p = 0, or 1 if they are 0."""
    d = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    n, mean = len(d), float(d.mean())
    if n < 2:
        return Verdict(n, mean)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Verdict(n, mean, mean - half, mean + half, p)


def check_run(folder: Path) -> None:
    """Raise UserError if a folder holds no run."""
    config = read_config(folder)
    if not config:
        raise UserError(f"{folder}: a folder without a run; name workdirs" if folder.is_dir() else no_model(folder))
    if kind_of(config) not in ("train", "align"):
        raise UserError(f"{folder} is no run of train.py or align.py: for evaluations use python -m lm.evals.compare")


def read_run(folder: Path) -> Run:
    """Return a run. Raises UserError if the folder holds none, or one without held-out measures."""
    check_run(folder)
    config = read_config(folder)
    step, values = -1, {}
    for line in load_metrics(folder / "metrics.jsonl")[1]:
        if found := {key.removeprefix("valid_"): x for key, x in line.items() if key.startswith("valid_")}:
            step, values = line["step"], (values if line["step"] == step else {}) | found
    values = {key: x for key, x in values.items() if isinstance(x, int | float) and math.isfinite(x)}
    if not values:
        raise UserError(f"{folder} has no held-out measures in its metrics.jsonl: train it with data.valid_fraction above 0")
    path = folder / "report.json"
    report = read_object(path, "run the command of the run again to recreate it") if path.exists() else {}
    version = (report.get("provenance") or {}).get("code") or ""
    return Run(folder, flat(config), version, values, step, own_code(folder))


def arms_of(runs: Sequence[Run]) -> list[dict[int, Run]]:
    """Return the runs by arm and seed. Runs of the same settings and seed are arms if their commits differ.

    Raises: UserError if an arm has a seed twice.
    """

    def settings(run: Run) -> str:
        return repr(({key: value for key, value in run.config.items() if key not in NOT_AN_ARM}, run.own))

    seeds = Counter((settings(run), run.config["seed"]) for run in runs)
    twice = {key for (key, _), count in seeds.items() if count > 1}
    arms: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        arm = arms.setdefault((key := settings(run), run.code if key in twice else ""), {})
        if (other := arm.get(run.config["seed"])) is not None:
            raise UserError(
                f"{other.folder} and {run.folder} are one run twice: the same settings and seed={run.config['seed']}"
            )
        arm[run.config["seed"]] = run
    return list(arms.values())


def measure_of(runs: Sequence[Run], wanted: str) -> str:
    """Return the measure that all runs have. Raises UserError if there is none."""
    shared = set.intersection(*(set(run.values) for run in runs))
    for name in (wanted,) if wanted else ("reward", "rewards/accuracies", "bits_per_byte", "nll", "loss"):
        if name in shared:
            return name
    raise UserError(
        f"--measure={wanted or 'bits_per_byte'} is not in all runs; they share {', '.join(sorted(shared)) or 'none'}"
    )


def differences(first: Run, other: Run) -> list[str]:
    """Return "key: value → value" of the keys in which two arms differ, and what differs in their code."""
    keys = [key for key in dict.fromkeys((*first.config, *other.config)) if key not in NOT_AN_ARM]
    lines = [f"{key}: {a} → {b}" for key in keys if (a := first.config.get(key)) != (b := other.config.get(key))]
    return lines + code.of_commits(first.code, other.code) + code.of_files(first.own, other.own)


def differs(a: Run, b: Run, measure: str) -> str:
    """Return the first key that makes `measure` another one in the two runs, or ""."""
    bases = [basis_of(run.config, measure, run.own) for run in (a, b)]
    return next((key for key in bases[0] if bases[0][key] != bases[1][key]), "")


def verdict(first: Mapping[int, Run], other: Mapping[int, Run], measure: str, alpha: float) -> str:
    """Return the sentence on two arms."""
    a, b = (next(iter(arm.values())) for arm in (first, other))
    if key := differs(a, b, measure):
        cure = "evaluate.py can ask both models the same"
        return f"no verdict: the arms differ in {key}, so {measure} is not the same measure in both: {cure}"
    seeds = sorted(set(first) & set(other))
    if not seeds:
        return "no verdict: the arms share no seed"
    for arms in [(first,), (other,)] if a.config.get("steps") != b.config.get("steps") else [(first, other)]:
        runs = sorted((arm[seed] for arm in arms for seed in seeds), key=lambda run: run.step)
        if runs[0].step != runs[-1].step:
            short, long = runs[0], runs[-1]
            return f"no verdict: the last validation of {short.folder} is at step {short.step}, not {long.step}: resume it"
    values = [[arm[seed].values[measure] for seed in seeds] for arm in (first, other)]
    result = paired_t(*values, alpha)
    moved = f"{measure} {np.mean(values[0]):.4g} → {np.mean(values[1]):.4g}"
    if result.p is None:
        return f"{moved}, n = 1 seed: too few to tell"
    interval = f"difference {result.difference:+.4g}, {1 - alpha:.0%} interval {result.low:+.4g} to {result.high:+.4g}"
    word = "no difference"
    if result.p < alpha:
        word = "better" if is_better(measure, *map(float, map(np.mean, values))) else "worse"
    return f"{moved}: {word} ({interval.replace('%', ' %')}, p = {result.p:.2g}, n = {result.n} seeds)"


def main() -> None:
    _, *folders = cli.parse_flags(sys.argv, takes_arguments=True)
    if len(folders) < 2:
        raise UserError("name two runs or more: python -m lm.compare runs/a runs/b")
    for folder in map(Path, folders):
        check_run(folder)
    arms = arms_of(runs := [read_run(Path(folder)) for folder in folders])
    measure = measure_of(runs, FLAGS.measure)
    if len(arms) < 2:
        raise UserError(f"all {len(runs)} runs have the same settings but for the seed: name runs of another arm too")
    first = next(iter(arms[0].values()))
    for arm in arms[1:]:
        other = next(iter(arm.values()))
        print(f"{_names(arms[0])} → {_names(arm)}")
        for line in differences(first, other):
            print(f"  {line}")
        print(f"  {verdict(arms[0], arm, measure, FLAGS.alpha)}\n")
    print(runs_page.write([run.folder for run in runs], Path(FLAGS.out)))


def _names(arm: Mapping[int, Run]) -> str:
    return ", ".join(str(run.folder) for run in arm.values())


if __name__ == "__main__":
    cli.run(main, __doc__)
