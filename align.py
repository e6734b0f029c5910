"""Align a language model: instruction tuning, preferences, reward models, reinforcement learning, distillation, safety.

    python align.py --config=configs/align/sft.py --workdir=runs/sft --config.init_from=runs/base --config.data.input=FILES
    python align.py --config=configs/align/grpo.py --workdir=runs/rl --config.init_from=runs/sft --config.data.input=FILES

Starts from a workdir, a Hugging Face folder or a GGUF file and writes a workdir. configs/align/ has one config per method (sft,
dpo, kto, orpo, reward, ppo, grpo, distill, best_of, safety); configs/align/default.py explains every key, and docs/align.md
every method, its data and its metrics. data.input names files of examples or a built-in task: builtin:arithmetic?digits=2.
Workdir, init_from and data may be in a bucket: gs://… or s3://… (docs/buckets.md).

The keys that matter most, as --config.KEY=VALUE:
  init_from                the model to start from: a workdir, a Hugging Face folder or a GGUF file
  data.input               chats, pairs, labels or prompts, by the method
  epochs, steps            passes over the data, or updates; none: three passes
  batch_size               rows of an update; none: chosen from the data
  sequence_length          tokens of a row; longer examples are cut
  optimizer.learning_rate  none: chosen for method, size and adapter
  model.adapter.rank       train a LoRA adapter of this rank instead of all weights
  data.valid_fraction      share of the prompts that is held out, for the verdict and the samples
  rewards                  grpo, ppo, best_of: functions and weights, such as answer=1,my_rewards.py:brevity=0.5
  accumulate, model.remat  more slices, or full: less memory

Run the same command again to resume after a crash, a kill or a Ctrl-C; the result is the same to the bit. Writes to workdir:
config.json, the tokenizer, checkpoints/, data/, metrics.jsonl, samples.jsonl, tensorboard/, report.html, report.json.
"""

from pathlib import Path

from lm import cli
from lm.align.checks import check_alignment
from lm.parallel.join import join
from lm.runs.lock import locked


def main(config, workdir: Path) -> None:
    join(lambda: check_alignment(config, workdir))  # then JAX loads
    with locked(workdir):
        align(config, workdir)


def align(config, workdir: Path) -> None:
    from lm.parallel import hosts
    from lm.reports import align as report
    from lm.reports import safety as safety_report
    from lm.reports.next_steps import show

    if config.method == "safety":
        from lm.align.safety.loop import run

        run(config, workdir, report.write_run, safety_report.write)
    elif config.method == "best_of":
        from lm.align.best_of import run

        run(config, workdir, report.write_run)
    else:
        from lm.align.run import run

        run(config, workdir, report.write_run)
    if hosts.is_first():
        show(workdir)


if __name__ == "__main__":
    with cli.command(__doc__) as arguments:
        main(*arguments)
