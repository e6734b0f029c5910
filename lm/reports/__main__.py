"""Write one page that lists and compares runs: states, results, curves, differing settings, and what starts from what.

    python -m lm.reports RUNS_DIR                       # all runs in the folder and below -> RUNS_DIR/runs.html
    python -m lm.reports RUNS_DIR --runs='lr-*,demo/*'  # only runs whose path below RUNS_DIR matches
    python -m lm.reports runs/a runs/b evals/a          # these; the page goes into the folder around them
    python -m lm.reports RUNS_DIR --out=FILE

A run is the workdir of train.py, align.py, evaluate.py, curate.py or serve.py, or an imported model. Runs of one
kind are drawn over one another. The page is one file, needs no network, and can be sent to others; its links lead to the
runs' own reports. A run that is damaged or was interrupted is listed with what is wrong. Nothing but the page is written, so
runs may go on meanwhile (`python -m lm.dashboard` shows the same page live). If there is no run, the exit code is 2.
"""

import os
import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError

PAGE = "runs.html"


def options() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("runs", [], "Shell patterns of runs, separated by commas; * also matches /.", flag_values=values)
    flags.DEFINE_string("out", None, f"The page; by default {PAGE} in the folder.", flag_values=values)
    return values


def folders_of(values: flags.FlagValues, argv: list[str]) -> list[Path]:
    """Parse flags into `values`, and return the folders beside them. Raises: UserError."""
    values.set_gnu_getopt(True)
    try:
        folders = [Path(name) for name in values(argv)[1:]]
    except flags.Error as error:
        raise UserError(str(error)) from None
    if not folders:
        raise UserError("name a folder of runs, such as runs; --help tells what there is")
    for folder in folders:
        if not folder.is_dir():
            what = "a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {what}; name folders of runs")
    return folders


def main(argv: list[str]) -> None:
    values = options()
    folders = folders_of(values, argv)
    around = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    out = Path(values.out or around / PAGE)
    if out.is_dir():
        raise UserError(f"--out={out}: a folder; name a file")
    from lm.reports.runs import write  # which takes a second to import

    print(write(folders, out, values.runs))


if __name__ == "__main__":
    sys.argv[0] = "lm.reports"
    cli.run(lambda: main(sys.argv), __doc__, options())
