"""Log each step: to metrics.jsonl, TensorBoard, trackers and the progress bar (lm/train/metrics.py)."""

import operator

from lm.kernels import ops
from lm.model import sizing
from lm.parallel import memory
from lm.parallel.hosts import is_first
from lm.parallel.pipeline import schedule
from lm.train.metrics import Log
from lm.train.run import Done, Event, Run
from lm.train.speed import mfu_formula, peak_flops
from lm.train.step import model_config_of

NOT_LOGGED = ("weight", "skipped_in_row", "high_in_row", "recent")  # what a step tells the loop only


class StepLog(Event):
    """Keeps `run.log`, which other events write to."""

    def start(self, run: Run) -> None:
        config, model = run.config, model_config_of(run.config)
        run.num_params = sum(sizing.parameters(model)["total"].values())
        self._flops, self._peak = sizing.flops_per_token(model, config.sequence_length), peak_flops()
        run.log = Log(run.workdir, config, enabled=is_first(), step=run.begin)
        tokens = config.batch_size * config.sequence_length
        run.log.say(f"{run.num_params:,} parameters, {tokens:,} tokens a step, {dict(run.mesh.shape)}")
        if offloaded := [key for key in ("model.offload", "optimizer.offload") if operator.attrgetter(key)(config)]:
            run.log.say(f"{' and '.join(offloaded)}: {memory.explained()}")
        if run.mesh.shape["stage"] > 1:
            run.log.say(f"pipeline: {schedule(model.pipeline, config.batch_size // config.accumulate, run.mesh)}")
        if formula := mfu_formula():
            run.log.say(formula)
        if run.begin < config.steps:
            run.log.compiling()

    def done(self, run: Run, done: Done) -> None:
        rate = done.tokens / done.seconds
        line = {name: value for name, value in done.metrics.items() if name not in NOT_LOGGED}
        line |= {"skipped": run.skipped, "tokens": run.tokens, "tokens_per_second": rate, "tflops": rate * self._flops / 1e12}
        if self._peak:
            line["mfu"] = rate * self._flops / self._peak[0]
        line |= {"spikes": int(line["spikes"])} if "spikes" in line else {}
        if done.step == run.begin + 1:
            run.log.say(f"kernels: {ops.summary()}")
        run.log.train({"step": done.step, **line, **run.rewinds.counted(done.step), **done.line}, done.ids)

    def close(self, run: Run) -> None:
        run.log.close()
