"""Does a small model calculate better if it may think, and how does its accuracy depend on the budget?

python -m benchmarks.thinking [--seeds=0,1,2] [--items=200] [--digits=3] [--steps=120] [--out=runs/thinking]

Of each seed, a model of 0.9 M parameters is trained on text of sums and differences, and tuned twice with the same questions
and steps: on answers alone, and on answers behind a thought that goes through the digits (builtin:arithmetic?thoughts=true).
Both answer held-out questions by evaluate.py, the second with several budgets (config.thought_budgets). The last one is more
than any thought needs. Finished runs are not run again. The last line is one JSON object of accuracies.
"""

import argparse
import itertools
import json
from pathlib import Path

from benchmarks.agent_rl import MODEL, verb
from data.tasks.arithmetic import arithmetic
from lm.files import saving

BUDGETS = (0, 8, 16, 24, 32, 48, 96)
TASK = """kind: generation
data: items.jsonl
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 12}
metric_list: [exact_match]
"""
SHORT = {"valid_every": 0, "checkpoint_every": 10_000, "dtype": "float32", "sequence_length": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--items", type=int, default=200, help="held-out questions")
    parser.add_argument("--digits", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="of the tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/thinking"))
    options = parser.parse_args()
    out, found = options.out.resolve(), {}
    out.mkdir(parents=True, exist_ok=True)
    saving.write_lines(out / "items.jsonl", itertools.islice(arithmetic("valid", 1, options.digits), options.items))
    saving.write(out / "sums.yaml", TASK)
    for seed in map(int, options.seeds.split(",")):
        found[seed] = accuracies(seed, out, options)
        print(f"seed {seed}: {found[seed]}", flush=True)
    print(json.dumps({"accuracy": found, "items": options.items, "digits": options.digits}))


def accuracies(seed: int, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train the models of a seed; return {"answers alone" or "BUDGET": accuracy} on the held-out questions."""
    text, base, found = out / f"text{seed}.jsonl", out / f"base{seed}", {}
    records = itertools.islice(arithmetic("train", 1000 + seed, options.digits, thoughts=True), 4000)
    saving.write_lines(text, ({"text": spoken(record)} for record in records))
    model = {f"model.{key}": value for key, value in MODEL.items()}
    verb("train", "train/tiny.py", base, {"data.input": text, "steps": 100, "seed": seed, "samples": "()"} | SHORT | model)
    for name in ("answers", "thoughts"):
        tuned, scored = out / f"{name}{seed}", out / f"evaluation-{name}{seed}"
        data = f"builtin:arithmetic?digits={options.digits}&thoughts={str(name == 'thoughts').lower()}"
        keys = {"init_from": base, "data.input": data, "seed": seed, "steps": options.steps, "batch_size": 32}
        verb("align", "align/sft.py", tuned, keys | {"optimizer.learning_rate": 2e-3, "valid_first": False} | SHORT)
        keys = {"checkpoint": tuned, "tasks": out / "sums.yaml", "chat_template": "own"}
        verb("evaluate", "evaluate/default.py", scored, keys | {"thought_budgets": BUDGETS if name == "thoughts" else ()})
        results = json.loads((scored / "results.json").read_text())
        for task, result in results.items():
            if isinstance(result, dict) and "exact_match" in result:
                found[task.partition("@")[2] or "answers alone"] = result["exact_match"]
    return found


def spoken(record: dict) -> str:
    """Return a question with its thought and answer as text, from which a base model learns tokens and digits."""
    thought = record["messages"][1]["reasoning_content"]
    return f"{record['prompt']}\n<think>\n{thought}\n</think>\n\n{record['answer']}\n"


if __name__ == "__main__":
    main()
