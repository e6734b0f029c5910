"""What a run does beside its steps, one file each. `usual` lists them in the order in which they run."""

import ml_collections

from lm.train.events.divergence import Divergence
from lm.train.events.find_nan import FindNan
from lm.train.events.health import Health
from lm.train.events.profile import Profile
from lm.train.events.saves import Saves
from lm.train.events.step_log import StepLog
from lm.train.events.validation import Evaluations, Measure, Samples, Validate, Validation, Write
from lm.train.loop import Event


def usual(
    config: ml_collections.ConfigDict,
    validate: Validate | None = None,
    measure: Measure | None = None,
    samples: Write | None = None,
) -> list[Event]:
    """Return the events that a config asks for. None leaves one out.

    Args:
      validate: validate(params, batches or None for all) -> {name: number}, every config.valid_every steps and at the end.
      measure: measure(step, params) -> {name: number}, every config.evals.every steps and at the end.
      samples: samples(step, params) -> lines to print, every config.samples_every steps and at the end.
    """
    return [
        Health(),
        StepLog(),
        *([Validation(validate)] if validate else []),
        *([Evaluations(measure)] if measure else []),
        *([Samples(samples)] if samples else []),
        *([FindNan()] if config.find_nan else []),
        Divergence(),
        *([Profile()] if config.profile else []),
        Saves(),
    ]
