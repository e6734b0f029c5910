"""Score saved answers to a benchmark, without a model.

python -m lm.evals.score --task=bbq --data=FILE --responses=ANSWERS.jsonl --out=results.json [--samples=samples.jsonl]

A line of --responses answers one item:
  ifeval              {"prompt": …, "response": …}
  bbq                 {"example_id": …, "question_index": …, "context_condition": …, "answer": 0, "A" or an option's text}, and
                      "category" where the file holds several
  xstest gsm8k mmlu   {"id": …, "response": …}: the id that the item has, or else the number of its row, from 0

--out is {TASK: results, "versions": …}. What cannot be scored is named and counted in its "problems", and not scored.
"""

import argparse
import importlib
import platform
import sys
from pathlib import Path

from lm import cli
from lm.errors import UserError
from lm.evals.tasks.items import csv_rows, digest, json_lines, label
from lm.files import saving

# Imported when it is asked for.
SCORERS = {
    "ifeval": "lm.evals.tasks.ifeval.scores",
    "bbq": "lm.evals.bias.bbq_scores",
    "xstest": "lm.evals.redteam.xstest_scores",
    "gsm8k": "lm.evals.tasks.gsm8k_scores",
    "mmlu": "lm.evals.tasks.mmlu_scores",
}
# Of CSV files without a header, by task.
COLUMNS = {"mmlu": ("question", "A", "B", "C", "D", "answer")}


def main(argv: list[str]) -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.evals.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", type=str.lower, choices=list(SCORERS), required=True, help="the benchmark")
    parser.add_argument("--data", help="the benchmark's file: JSON lines, or .csv")
    parser.add_argument("--responses", help="the answers: JSON lines")
    parser.add_argument("--out", help="the results, a JSON file")
    parser.add_argument("--samples", help="each scored item with its answer, JSON lines; none by default")
    options = parser.parse_args(argv[1:])
    paths = {name: Path(value) for name, value in vars(options).items() if value and name != "task"}
    for name in ("data", "responses", "out"):
        if name not in paths:
            raise UserError(f"--{name} is missing; --help shows an example")
    for name in ("data", "responses"):
        if not paths[name].exists():
            raise UserError(f"--{name}={paths[name]}: no such file; --help says what it holds")
    written = [paths[name] for name in ("out", "samples") if name in paths]
    for name, path in paths.items():
        if path in written and sum(path.absolute() == other.absolute() for other in paths.values()) > 1:
            raise UserError(f"--{name}={path}: another option names the same file; give each its own")
    results, samples = run(options.task, paths["data"], paths["responses"])
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
    if "samples" in paths:
        saving.write_lines(paths["samples"], samples, ensure_ascii=True)
    saving.write_json(paths["out"], results)
    scores = results[options.task]
    figures = {name: value for name, value in scores.items() if isinstance(value, float) and not name.endswith("_stderr")}
    shown = [f"{name} {value:.4g}" for name, value in figures.items()]
    print(", ".join([*shown, f"n {scores['n']}, missing {scores['missing']}"]))
    for kind, problem in scores["problems"].items():
        print(f"{problem['n']} {kind.replace('_', ' ')}: {'; '.join(problem['examples'])}")


def run(task: str, data: Path, responses: Path) -> tuple[dict, list[dict]]:
    """Return what goes into --out and into --samples. Raises: UserError for a file that cannot be read at all."""
    scorer = importlib.import_module(SCORERS[task])
    items, answers = read_items(task, data), list(json_lines(responses))
    results, samples = scorer.score(items, answers)
    for path, rows in ((data, items), (responses, answers)):
        if not rows:
            results["problems"].setdefault("empty_files", {"n": 0, "examples": []})
            results["problems"]["empty_files"]["n"] += 1
            results["problems"]["empty_files"]["examples"].append(str(path))
    versions = {"python": platform.python_version(), "data": digest(data), "responses": digest(responses)}
    return {task: results, "versions": versions}, samples


def read_items(task: str, path: Path) -> list[dict]:
    """Return the rows of a benchmark's file. One that cannot be read is {"malformed": why}, so that others keep their numbers.

    Rows of MMLU have the subject that the file is named after, unless they tell their own.
    """
    if path.suffix.lower() != ".csv":
        return list(json_lines(path))
    own = {"subject": label(path, path.parent, task)} if task == "mmlu" else {}
    return [own | item for item in csv_rows(path, COLUMNS.get(task))]


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv)
