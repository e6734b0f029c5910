"""Say which tensor was the first that is not finite in a step: config.find_nan (lm/train/find_nan.py)."""

import numpy as np

from lm.train.find_nan import explain
from lm.train.run import Event, Run


class FindNan(Event):
    """Says which tensor of a failed step was not finite first, if the config asks for it."""

    def after(self, run: Run, step: int) -> None:
        if not run.config.find_nan or run.batch is None:
            return
        if not np.isfinite([run.device_metrics["loss"], run.device_metrics["grad_norm"]]).all():
            for text in explain(run.config, run.trainer.objective, run.state, run.batch, run.frozen):
                run.log.say(f"step {step}: {text}")
