"""Write records of a built-in task as JSON lines; see data/tasks/__init__.py."""

import argparse
import itertools
from pathlib import Path
from urllib.parse import parse_qsl

from data import tasks
from data.tasks.splits import SPLITS
from lm import cli
from lm.errors import UserError
from lm.files import saving


def main() -> None:
    known = tasks.TASKS | tasks.CORPORA
    parser = cli.ArgumentParser(
        prog="python -m data.tasks", description=tasks.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=", ".join(known))
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="records at most; valid may have fewer")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    name, _, options = given.name.partition("?")
    if given.count < 1:
        raise UserError(f"--count={given.count} must be at least 1")
    options = dict(parse_qsl(options, keep_blank_values=True))
    records = tasks.task(name, given.split, given.seed, options, known)
    saving.write_lines(given.out, itertools.islice(records, given.count))


if __name__ == "__main__":
    with cli.guard():
        main()
