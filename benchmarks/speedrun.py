"""A speedrun: how little work of a machine trains a model to TARGET bits per byte of a held-out text?

python -m benchmarks.speedrun [--entry=default|FILE.py:FUNCTION] [--name=NAME] [--out=runs/speedrun]
python -m benchmarks.speedrun check FILE.json [--seed=N]

An entry is a function that gets a config of train.py and returns it with a recipe. It may change all but FROZEN. Its score is
the mean over SEEDS of the processor seconds of training times the machine's speed, in GFLOP: lower is better. The mean bits per
byte must reach TARGET. Compilation, preparation of the data and validation are not counted. OUT/NAME.json keeps each seed, and
OUT/NAME.py the recipe, so the same line resumes. `check` trains one seed of a result again. Rules: docs/speedrun.md.
"""

import argparse
import collections
import contextlib
import hashlib
import inspect
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import recipe, speedrun_text
from lm.cli import verb as cli
from lm.errors import UserError
from lm.files import saving, untrusted
from lm.files.user_files import check_file, is_own, parted
from lm.progress import progress

TARGET = 1.25  # bits per byte of the held-out text, mean over SEEDS
SEEDS = (0, 1, 2)
FROZEN = ("seed", "data", "tokenizer", "init_from", "model.vocab_size")  # keys that an entry may not change
WARM = 5  # first steps with batches of one size, whose seconds are taken from the later ones: they compile
MIN_STEPS = 2 * WARM
TOLERANCE = 0.02  # bits per byte by which the check of a seed may differ
BAND = 1.3  # factor by which the score of a check may differ
PRODUCT, REPEATS = 1024, 15  # rows of the square matrices whose product measures a machine
ENTRIES = Path(__file__).with_name("speedrun_entries.py")
SAME = ("judge_sha256", "text_sha256", "recipe_sha256", "config_sha256")  # keys that two runs of one result share


def main() -> None:
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", nargs="*", metavar="check FILE.json", help="train a seed of a result again, and compare")
    parser.add_argument("--entry", default="default", help=f"a function of {ENTRIES.name}, or {recipe.FORM}")
    parser.add_argument("--name", help="of the result; default: the function's name")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="of check; default: the one with the fewest bits per byte")
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    options = parser.parse_args()
    if options.check:
        if options.check[0] != "check" or len(options.check) != 2:
            parser.error(f"{' '.join(options.check)}: write check FILE.json")
        sys.exit(0 if checked(Path(options.check[1]), options.seed, options.out) else 1)
    record = entered(options.entry, options.name, options.out)
    print(table(record))
    sys.exit(0 if record["reached"] else 1)


def entered(entry: str, name: str | None, out: Path) -> dict[str, Any]:
    """Train an entry on the seeds that OUT/NAME.json lacks, and return the content of that file."""
    file, function = parted("entry", entry if is_own(entry) else f"{ENTRIES}:{entry}", recipe.FORM)
    check_file(file, function, "entry", recipe.FORM)
    name = name or function
    if Path(name).name != name:
        raise UserError(f"--name={name}: set a name without folders; --out is the folder")
    result, copy, text = out / f"{name}.json", out / f"{name}.py", out / "text"
    record = identity(f"{file}:{function}", text)
    if result.is_file():
        old = read(result)
        different = [key for key in SAME if old[key] != record[key]]
        different += ["commit or processor"] if len(old["seeds"]) < len(SEEDS) and made_by(old) != made_by(record) else []
        if different:
            raise UserError(f"{result} has another {' and another '.join(different)}: delete it, or set another --name")
        record = old
    saving.write(copy, file.read_bytes())
    speedrun_text.text(text)
    for seed in SEEDS:
        if str(seed) not in record["seeds"]:
            record["seeds"][str(seed)] = trained(f"{copy}:{function}", seed, text)
            record |= summary(record["seeds"])
            saving.write_json(result, record)
    return record


def identity(own: str, text: Path) -> dict[str, Any]:
    """Return a result without seeds: what it was made of. own: FILE.py:FUNCTION of the recipe."""
    from lm.runs import provenance

    file, function = parted("entry", own, recipe.FORM)
    config = config_of(own, SEEDS[0], text).to_dict()
    del config["data"]  # the same for all but its path
    settings = json.dumps(saving.plain(config), sort_keys=True).replace(str(file), "RECIPE")
    return {
        "function": function,
        "commit": provenance.CODE or "unknown",
        "machine": provenance.machine(),
        "judge_sha256": judge(),
        "text_sha256": speedrun_text.FINGERPRINT,
        "recipe_sha256": sha256(file.read_bytes()),
        "config_sha256": sha256(settings.encode()),
        "seeds": {},
    }


def judge() -> str:
    """Return the SHA-256 of the code that trains and scores an entry."""
    parts = (sys.modules[__name__], speedrun_text, recipe.Ours, recipe.with_recipe, recipe.bits_per_byte, recipe.sized)
    return sha256("".join(map(inspect.getsource, parts)).encode())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def summary(seeds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the means over seeds, and whether all seeds are there and reach the target."""
    bits, seconds = (statistics.fmean(run[key] for run in seeds.values()) for key in ("bits_per_byte", "seconds"))
    score = statistics.fmean(map(score_of, seeds.values()))
    return {
        "bits_per_byte": bits,
        "seconds": seconds,
        "score": score,
        "target": TARGET,
        "reached": len(seeds) == len(SEEDS) and bits <= TARGET,
    }


def score_of(run: dict[str, float]) -> float:
    """Return the work of a machine in GFLOP: processor seconds times its GFLOP in a processor second."""
    return run["seconds"] * run["gflops"]


def table(record: dict[str, Any]) -> str:
    """Return the seeds and their mean as lines of a table."""
    mean = {**record, "gflops": record["score"] / record["seconds"], "steps": ""}
    lines = [f"{'seed':>6}{'steps':>8}{'bits per byte':>16}{'processor s':>14}{'GFLOP/s':>10}{'score':>10}"]
    for seed, run in [*sorted(record["seeds"].items()), ("mean", mean)]:
        numbers = f"{run['bits_per_byte']:>16.4f}{run['seconds']:>14.1f}{run['gflops']:>10.1f}{score_of(run):>10.0f}"
        lines.append(f"{seed:>6}{run['steps']:>8}{numbers}")
    return "\n".join([*lines, f"target of {TARGET} bits per byte: {'reached' if record['reached'] else 'missed'}"])


# One run.


def config_of(own: str, seed: int, text: Path):
    """Return the config of an entry. Raises: UserError: it changes a frozen key, or names a file beside its own."""
    config = base_config(str(speedrun_text.path_of(text, "train")))
    config.seed = seed
    config = recipe.with_recipe(own, config, FROZEN)
    if config.steps < MIN_STEPS:
        raise UserError(f"recipe: {own} sets steps={config.steps}; set at least {MIN_STEPS}")
    file = str(parted("recipe", own, recipe.FORM)[0])
    named = re.findall(r'"([^"]*\.py):', json.dumps(saving.plain(config.to_dict())))
    if others := sorted(set(named) - {file}):
        raise UserError(f"recipe: {own} names {others[0]}; a recipe is one file, which names itself by __file__")
    return config


def base_config(train: str):
    """Return the config that entries change: the demo's, for the whole text."""
    config = recipe.sized("3M", train)
    config.data.update(max_bytes=None, valid_fraction=0.0)
    return config


def trained(own: str, seed: int, text: Path) -> dict[str, float]:
    """Train an entry on one seed. Returns its bits per byte, its processor seconds, and the machine's GFLOP in one of these."""
    from data.text.batches import TextBatches, parse_sizes

    config = config_of(own, seed, text)
    tokenizer, folders = prepared(config, text)
    sizes = parse_sizes(config.batch_warmup, config.batch_size)
    train = TextBatches(folders["train"], batch_size=config.batch_size, seed=seed, growth=sizes)
    valid = TextBatches(folders["held_out"], batch_size=config.batch_size, shuffle=False)
    held_out = [valid.batch(n) for n in range(valid.num_batches)]
    learner = recipe.Ours(config)
    speeds = product_speeds()
    with progress(f"{parted('entry', own, recipe.FORM)[1]}, seed {seed}", config.steps) as bar:
        seconds = training_seconds(learner, train, config.steps, bar)
    speeds += product_speeds()
    check_causal(learner, held_out[0], own)
    bits = recipe.bits_per_byte(learner, held_out, tokenizer.bytes_per_token)
    if not math.isfinite(bits):
        raise UserError(f"recipe: {own} ends with a loss that is not finite")
    return {"bits_per_byte": bits, "seconds": seconds, "gflops": statistics.median(speeds), "steps": config.steps}


def prepared(config, text: Path):
    """Return the tokenizer, which is trained on the training text, and the folders of rows of both parts."""
    from data.text.pipeline import prepare_text

    folders, tokenizer, own = {}, None, config.copy_and_resolve_references()
    own.seed = SEEDS[0]  # of the sample that the tokenizer learns from
    for part in speedrun_text.PARTS:
        own.data.input = str(speedrun_text.path_of(text, part))
        tokenizer, folders[part], _ = prepare_text(own, text / part)
        own.tokenizer = str(text / "train")
    return tokenizer, folders


def training_seconds(learner: recipe.Ours, batches, steps: int, bar) -> float:
    """Train, and return the processor seconds of all steps; those that compile count as much as later ones of their size."""
    seconds = collections.defaultdict(list)  # by rows of the batch
    bar.compiling()
    for n in range(steps):
        rows = batches.batch(n)
        begin = time.process_time()
        learner.step(rows)
        learner.wait()
        seconds[len(rows["tokens"])].append(time.process_time() - begin)
        bar.update()
    return sum(len(times) * statistics.fmean(times[WARM:] or times) for times in seconds.values())


def product_speeds() -> list[float]:
    """Return the GFLOP of a float32 matrix product in a processor second, measured REPEATS times."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((PRODUCT, PRODUCT), jnp.float32)
    product, speeds = jax.jit(lambda x: x @ x), []
    product(x).block_until_ready()
    for _ in range(REPEATS):
        begin = time.process_time()
        product(x).block_until_ready()
        speeds.append(2 * PRODUCT**3 / 1e9 / (time.process_time() - begin))
    return speeds


def check_causal(learner: recipe.Learner, rows: dict[str, Any], own: str) -> None:
    """Raise UserError if the losses of the first half of each row depend on tokens of the second half."""
    half = rows["tokens"].shape[1] // 2
    weights, tokens = rows["weights"].copy(), rows["tokens"].copy()
    weights[:, half:], tokens[:, half:] = 0, tokens[:, :half].max()
    before, after = (learner.nats(rows | {"weights": weights, "tokens": x}) for x in (rows["tokens"], tokens))
    if not math.isclose(before, after, rel_tol=1e-4):
        raise UserError(f"recipe: the model of {own} sees the tokens that it predicts")


# The check.


def checked(result: Path, seed: int | None, out: Path) -> bool:
    """Train a seed of a result again, print both scores, and return whether they agree.

    Raises: UserError: the result has another judge, text or recipe, or lacks seeds.
    """
    record, copy = read(result), result.with_suffix(".py")
    if not copy.is_file():
        raise UserError(f"{result}: no recipe {copy} beside it")
    for key, own in (("judge_sha256", judge()), ("text_sha256", speedrun_text.FINGERPRINT)):
        if record[key] != own:
            raise UserError(f"{result} has {key} {record[key][:12]}…, and here it is {own[:12]}…: they cannot be compared")
    if record["recipe_sha256"] != sha256(copy.read_bytes()):
        raise UserError(f"{result}: {copy} is not the recipe that was scored: its SHA-256 differs")
    if missing := [seed for seed in SEEDS if str(seed) not in record["seeds"]]:
        raise UserError(f"{result} lacks seed {', '.join(map(str, missing))}: run the entry again to complete it")
    text = speedrun_text.text(out / "text")
    own = f"{copy}:{record['function']}"
    here = identity(own, text)
    if here["config_sha256"] != record["config_sha256"]:
        raise UserError(f"{result}: its recipe gives another config at commit {here['commit']} than at {record['commit']}")
    if seed is None:
        seed = min(SEEDS, key=lambda seed: record["seeds"][str(seed)]["bits_per_byte"])
    print(f"commit and processor: recorded {made_by(record)}; here {made_by(here)}")
    return agree(record, trained(own, seed, text), seed)


def agree(record: dict[str, Any], again: dict[str, float], seed: int) -> bool:
    """Print and return whether a result's means follow from its seeds, and one of these from a second run."""
    old, means = record["seeds"][str(seed)], summary(record["seeds"])
    bits, scores = (old["bits_per_byte"], again["bits_per_byte"]), (score_of(old), score_of(again))
    verdicts = {
        f"seed {seed}: {bits[0]:.4f} bits per byte recorded, {bits[1]:.4f} here (within {TOLERANCE})": abs(bits[0] - bits[1])
        <= TOLERANCE,
        f"seed {seed}: score {scores[0]:.0f} recorded, {scores[1]:.0f} here (within a factor of {BAND})": max(scores)
        <= BAND * min(scores),
        "means recorded are those of the seeds": all(record.get(key) == value for key, value in means.items()),
        f"{means['bits_per_byte']:.4f} bits per byte reach {TARGET}": means["reached"],
    }
    for what, is_right in verdicts.items():
        print(f"{'yes' if is_right else 'NO':>3}  {what}")
    return all(verdicts.values())


def made_by(record: dict[str, Any]) -> str:
    return untrusted.shown(f"{record['commit']}, {record['machine'].get('cpu')}")


def read(result: Path) -> dict[str, Any]:
    """Return the content of a result. Raises: UserError: it is none."""
    if not result.is_file():
        raise UserError(f"{result}: no such file; name a result, such as runs/speedrun/default.json")
    record = untrusted.read_json(result)
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        for run in record["seeds"].values():
            if not all(math.isfinite(run[key]) and run[key] > 0 for key in ("bits_per_byte", "seconds", "gflops", "steps")):
                raise ValueError
        if all(isinstance(record[key], str) for key in ("function", "commit", *SAME)) and made_by(record):
            return record
    raise UserError(f"{result} is no result of this command")


if __name__ == "__main__":
    with cli.guard():
        main()
