"""Evaluate a language model: knowledge, instruction following, hallucination, bias, safety.

    python evaluate.py --config=configs/evaluate/default.py --workdir=evals/mine --config.checkpoint=runs/mine \
        --config.tasks=mmlu,gsm8k,bbq --config.data_dir=DIR
    python evaluate.py --config=configs/evaluate/core.py --workdir=evals/core --config.checkpoint=FOLDER --config.data_dir=DIR

Takes a workdir of train.py or align.py, a Hugging Face folder or a GGUF file. Items of a task are
DIR/<task>/*.{csv,jsonl,parquet}. Workdir and checkpoint may be in a bucket: gs://… or s3://… (docs/buckets.md).
configs/evaluate/default.py explains every key, docs/evaluate.md every task. Run the same command again to resume after a crash,
a kill or a Ctrl-C; the results are the same to the byte. Writes to the workdir: config.json, results.json, samples.jsonl (each
item with its exact prompt), report.html, report.json, items.html, tasks/, answers.sqlite. With --config.compare=OTHER_WORKDIR
the exit code is 1 if a task became worse.
"""

from pathlib import Path

from lm import cli
from lm.evals.checks import check_evaluation
from lm.parallel.join import join
from lm.runs.lock import locked


def main(config, workdir: Path) -> None:
    join(lambda: check_evaluation(config, workdir), trains=False)  # then JAX loads
    with locked(workdir):
        from lm.evals.run import run
        from lm.parallel import hosts
        from lm.reports.evaluate import write_run
        from lm.reports.next_steps import show

        worse = run(config, workdir, write_run)
        if hosts.is_first():
            show(workdir)
    if worse:
        cli.fail("worse than before: " + "; ".join(worse), 1)


if __name__ == "__main__":
    with cli.command(__doc__) as arguments:
        main(*arguments)
