"""Run the fault matrix: what train.py does when processes, disks, files and clocks fail.

    python -m tests.faults                          # all cases that have not been right with this code
    python -m tests.faults --only='damage-*,kill-1' # some
    python -m tests.faults --list

Each case runs train.py as a user does, with a tiny model on the CPU, makes one fault and compares the run with an uninterrupted
one, bit for bit. FOLDER/results.json and FOLDER/results.md have the results; cases that were right with the same code are not
run again, so the same command goes on after an interruption. Exit code 1 if a case is wrong. Some faults need root, Linux, and
the packages strace, faketime and e2fsprogs; cases that cannot run are skipped with a line.
"""

import argparse
import fnmatch
import hashlib
import json
import logging
import shutil
import sys
import time
from pathlib import Path

from lm.progress import progress
from tests.faults.cases import CASES, Case
from tests.faults.disks import unmount
from tests.faults.outcome import Skipped
from tests.faults.prepared import Prepared
from tests.verbs import runs

SOURCES = ("train.py", "lm/**/*.py", "data/**/*.py", "configs/train/*.py", "tests/faults/*.py", "tests/verbs/runs.py")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="names of cases, separated by commas; * stands for any characters")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for runs and results (default: runs/faults)")
    parser.add_argument("--again", action="store_true", help="also run the cases that were right")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    options = parser.parse_args()
    patterns = options.only.split(",")
    cases = [case for case in CASES if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    if not cases:
        parser.error(f"--only={options.only}: no such case; --list prints them")
    if options.list:
        print("\n".join(f"{case.name:32} {case.expected}" for case in cases))
        return 0
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about what it reads
    folder, code = options.folder.absolute(), digest()
    prepared = fresh(folder / "prepared", code)
    results = read(folder / "results.json")
    wanted = [case for case in cases if options.again or not _right(results.get(case.name, {}), code)]
    bar = progress("faults", len(cases), done=len(cases) - len(wanted))
    for case in wanted:
        results[case.name] = row = run(case, folder / case.name, prepared) | {"code": code}
        write(folder, results)
        bar.write(f"{case.name}: {row['result']}" + f" ({row['why']})" * bool(row["why"]))
        bar.update(1)
    bar.close()
    write(folder, results)
    print((folder / "results.md").read_text())
    wrong = [case.name for case in cases if results[case.name]["result"] == "wrong"]
    print(f"{len(cases) - len(wanted)} kept, {len(wanted)} run, {len(wrong)} wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def run(case: Case, folder: Path, prepared: Prepared) -> dict:
    """Run a case. Return its row of the results. The folder of a case that was right is removed."""
    unmount(folder / "disk")  # if this command was killed in the same case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = time.monotonic()
    row = {"fault": case.fault, "expected": case.expected, "seen": "", "why": ""}
    try:
        outcome = case.make(folder, prepared)
        row |= {"result": "wrong" if outcome.wrong else "right", "seen": outcome.seen, "why": "; ".join(outcome.wrong)}
    except Skipped as skipped:
        row |= {"result": "skipped", "why": str(skipped)}
    except Exception as error:  # the other cases go on
        row |= {"result": "wrong", "why": f"{type(error).__name__}: {error}"}
    if row["result"] != "wrong":
        shutil.rmtree(folder, ignore_errors=True)
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def digest() -> str:
    """Return a digest of the code that the results depend on."""
    found = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(runs.REPOSITORY.glob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def fresh(folder: Path, code: str) -> Prepared:
    """Return what cases share. Runs that were made with other code are removed."""
    mark = folder / "code"
    if not mark.exists() or mark.read_text() != code:
        shutil.rmtree(folder, ignore_errors=True)
    prepared = Prepared(folder)
    mark.write_text(code)
    return prepared


def read(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text()) if path.exists() else {}


def write(folder: Path, results: dict[str, dict]) -> None:
    """Write results.json and results.md, in the order of CASES."""
    ordered = {case.name: results[case.name] for case in CASES if case.name in results}
    (folder / "results.json").write_text(json.dumps(ordered, indent=1) + "\n")
    lines = ["| case | fault | expected | seen | result | s |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in ordered.items():
        seen = (row["seen"] or row["why"]).replace("|", "\\|").replace("\n", " ")[:300]
        lines.append(f"| {name} | {row['fault']} | {row['expected']} | {seen} | {row['result']} | {row['seconds']} |")
    (folder / "results.md").write_text("\n".join(lines) + "\n")


def _right(row: dict, code: str) -> bool:
    return row.get("code") == code and row.get("result") == "right"


if __name__ == "__main__":
    sys.exit(main())
