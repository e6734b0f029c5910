"""Show, replay or export the traces of `python -m lm.agent --traces=FILE`.

    python -m lm.agent.records show traces.jsonl
    python -m lm.agent.records replay traces.jsonl [--guard=off]
    python -m lm.agent.records export traces.jsonl --out=conversations.jsonl [--all]

replay runs no model and no tool, and says whether anything differs from the record: exit code 1 if so. export writes the runs
that came to an answer as conversations for align.py --config=configs/align/sft.py; --all writes every run.
"""

import argparse
import sys
from pathlib import Path

from lm import cli
from lm.agent.replay import differences, replayed
from lm.agent.trace import conversations, read, told
from lm.errors import UserError
from lm.files import saving

GUARD = {"on": {"guard": True}, "off": {"guard": False}, "": {}}


def main() -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.agent.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("show", "replay", "export"))
    parser.add_argument("traces", type=Path)
    parser.add_argument("--out", type=Path, help="export: the file to write")
    parser.add_argument("--all", action="store_true", help="export: also runs without an answer or with calls that did not run")
    parser.add_argument("--guard", choices=("on", "off"), default="", help="replay: with the guard switched so")
    given = parser.parse_args()
    traces = read(given.traces)
    if given.what == "show":
        print("\n\n".join(map(told, traces)))
    elif given.what == "export":
        _export(traces, given.out, given.all)
    else:
        sys.exit(_replay(traces, GUARD[given.guard]))


def _export(traces, out: Path | None, every: bool) -> None:
    if out is None or out.suffix != ".jsonl":
        raise UserError(f"--out={out or ''} must name a file that ends in .jsonl")
    rows = list(conversations(traces, ended=not every))
    if not rows:
        raise UserError(f"of {len(traces)} runs none came to an answer with all its calls run; --all exports them too")
    saving.write_lines(out, rows)
    print(f"{len(rows)} of {len(traces)} runs are in {out}")


def _replay(traces, changes: dict) -> int:
    wrong = 0
    for n, trace in enumerate(traces, start=1):
        found = differences(trace, replayed(trace, **changes))
        wrong += bool(found)
        print(f"run {n}: " + ("; ".join(found) or "the same"))
    return int(bool(wrong) and not changes)


if __name__ == "__main__":
    with cli.guard():
        main()
