"""Write one page that lists and compares runs: states, results, curves, differing settings, and what starts from what.

    python -m lm.reports RUNS_DIR                       # all runs in the folder and below -> RUNS_DIR/runs.html
    python -m lm.reports RUNS_DIR --runs='lr-*,demo/*'  # only runs whose path below RUNS_DIR matches
    python -m lm.reports runs/a runs/b evals/a          # these; the page goes into the folder around them
    python -m lm.reports RUNS_DIR --out=FILE

A run is the workdir of train.py, align.py, evaluate.py, curate.py, serve.py or lm.doremi, or an imported model. Runs of one
kind are drawn over one another. The page is one file, needs no network, and can be sent to others; its links lead to the
runs' own reports. A run that is damaged or was interrupted is listed with what is wrong. Nothing but the page is written, so
runs may go on meanwhile. If there is no run, the exit code is 2.

    python -m lm.reports.align RUN        # draws the page of one run again; also lm.reports.evaluate
"""

import os
import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.reports.named import folders_of

PAGE = "runs.html"


def options() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("runs", [], "Shell patterns of runs, separated by commas; * also matches /.", flag_values=values)
    flags.DEFINE_string("out", None, f"The page; by default {PAGE} in the folder.", flag_values=values)
    return values


def main(argv: list[str]) -> None:
    given = options()
    folders = folders_of(given, argv)
    around = folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.absolute() for folder in folders]))
    out = Path(given.out or around / PAGE)
    if out.is_dir():
        raise UserError(f"--out={out}: a folder; name a file")
    from lm.reports.runs import write  # which takes a second to import

    print(write(folders, out, given.runs))


if __name__ == "__main__":
    sys.argv[0] = "lm.reports"
    if cli.wants_help(sys.argv):
        print(f"{__doc__}\n{options().main_module_help()}")
    else:
        cli.guard(lambda: main(sys.argv))
