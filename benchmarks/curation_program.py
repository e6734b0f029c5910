"""curate.py as a whole program beside datatrove as a whole program: Gopher's filters, from JSON lines to kept documents.

python -m benchmarks.curation_program [--megabytes=3,20] [--rounds=3]

Text: docstrings of this Python installation, one document a file. Ours reads them, measures, and writes documents, dropped
documents and report pages (configs/curate/gopher.py, one process). datatrove's pipeline is JsonlReader, GopherQualityFilter,
GopherRepetitionFilter and JsonlWriter in a LocalPipelineExecutor with one task. Both are run in turns, after a run of ours that
compiles. Prints for each size the medians of the CPU seconds of all processes, those of the rules alone in a process that has
loaded everything, and the ratios; the last line is one JSON object. Needs datatrove[processing] and spacy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.curation import batches
from benchmarks.curation_memory import REPO
from data.filters.heuristics.gopher import gopher_quality, gopher_repetition
from data.filters.words import Words
from data.sources.python_installation import open_installation

MIN = 200  # characters of a document
PEER = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
steps = [JsonlReader(sys.argv[1]), GopherQualityFilter(), GopherRepetitionFilter(), JsonlWriter(sys.argv[2] + "/documents")]
LocalPipelineExecutor(steps, tasks=1, logging_dir=sys.argv[2] + "/log").run()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="3,20")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {}
    print("| text | curate.py | datatrove | ratio | rules alone |\n| --- | --- | --- | --- | --- |")
    for megabytes in map(float, options.megabytes.split(",")):
        one = found[f"{megabytes:g} MB"] = compared(texts_of(megabytes), options.rounds)
        print("| {:g} MB | {ours:.2f} | {theirs:.2f} | {ratio:.1f} × | {rules:.2f} |".format(megabytes, **one), flush=True)
    print(json.dumps(found))


def texts_of(megabytes: float) -> list[str]:
    source = next(source for source in open_installation() if source.name == "docstrings")
    texts, size = [], 0
    for one in source.read():
        if len(one.text) >= MIN:
            texts.append(one.text)
            size += len(one.text.encode())
        if size >= megabytes * 1e6:
            break
    return texts


def compared(texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Return CPU seconds {"ours", "theirs", "rules"} and "ratio", theirs to ours."""
    ours, theirs, rules = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text")
        text.mkdir()
        lines = [json.dumps({"id": str(k), "text": one}) + "\n" for k, one in enumerate(texts)]
        (text / "part.jsonl").write_text("".join(lines), encoding="utf-8")
        for k in range(rounds + 1):
            command = ["curate.py", "--config=configs/curate/gopher.py", f"--workdir={folder}/ours-{k}"]
            ours.append(program([*command, f"--config.input={text}", "--config.processes=1"]))
            rules.append(seconds(texts))
            if k:
                theirs.append(program(["-c", PEER, str(text), f"{folder}/theirs-{k}"]))
    found = {"ours": statistics.median(ours[1:]), "theirs": statistics.median(theirs), "rules": statistics.median(rules[1:])}
    return found | {"ratio": found["theirs"] / found["ours"]}


def program(arguments: Sequence[str]) -> float:
    """Return the CPU seconds of a Python program and of its processes."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    now = os.times()
    return now.children_user + now.children_system - before.children_user - before.children_system


def seconds(texts: Sequence[str]) -> float:
    """Return the CPU seconds of the rules."""
    begin = time.process_time()
    for batch in batches(texts):
        words = Words(batch)
        gopher_quality(words)
        gopher_repetition(words)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
