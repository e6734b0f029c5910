"""Serve a language model behind OpenAI's API, or answer a file of requests.

    python serve.py --config=configs/serve/default.py --workdir=serving [--config.checkpoint=runs/sft --config.KEY=VALUE ...]
    python serve.py --config=configs/serve/default.py --workdir=answers --config.batch=requests.jsonl
    python serve.py --config=configs/serve/default.py --plan=v5e:4x4   # compile for TPUs that are not here: memory, time

Takes a workdir of train.py or align.py, a Hugging Face folder or a GGUF file; without a checkpoint it is SmolLM2-135M-Instruct,
which `make serve` installs. Then http://127.0.0.1:8000/v1 is the base URL for any client of OpenAI's API. SIGTERM or Ctrl-C
ends the server: running requests are finished. configs/serve/default.py explains every key, docs/serve.md every route.
Writes to the workdir: config.json; for a batch results.jsonl, which the same command resumes after a crash, a kill or a Ctrl-C.
"""

from pathlib import Path

from absl import flags

from lm import cli
from lm.parallel.join import join
from lm.runs.lock import locked
from lm.runs.workdir import save_record
from lm.serve.settings import check_serving


def main(config, workdir: Path | None) -> None:
    if flags.FLAGS.plan:
        from lm.train.plan import command

        command.use_compiler()
        from lm.serve import plan

        plan.run(config, flags.FLAGS.plan, workdir)
        return
    join(lambda: check_serving(config, workdir), trains=False)  # then JAX loads
    with locked(workdir):
        from lm.parallel import hosts
        from lm.serve.run import serve

        config.checkpoint = hosts.from_first(lambda: config.checkpoint)
        if hosts.is_first():
            save_record(config, workdir)
        code = serve(config, workdir)
    if code:
        cli.fail("some requests of the batch failed", code)


if __name__ == "__main__":
    flags.DEFINE_string(
        "plan", None, "Compile the steps for a TPU topology that is not attached, and say if they fit and how fast they are."
    )
    with cli.command(__doc__, unless=("plan",)) as arguments:
        main(*arguments)
