"""The study of a sweep in Optuna's storage: which trials there are, their values, and which one is next.

A trial is RUNNING in the storage from the moment that it gets its number until its result is told. Its user attribute `workdir`
names the sweep's workdir that runs it. So a sweep that was killed finds the trials that it has begun.
"""

import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from lm.errors import UserError

PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "none": optuna.pruners.NopPruner,
}
BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
WAITING_SECONDS = 60  # that a storage in a file waits for another process

Space = Mapping[str, BaseDistribution]  # by dotted key of the config


class Study:
    """The trials of one sweep.

    options: storage, a URL of Optuna, or None for study.db in the workdir; sampler, sweep_seed, maximize, pruner, jobs. A study
      in a shared storage has the name of the workdir.
    Raises: UserError: the storage cannot be opened.
    """

    def __init__(self, workdir: Path, space: Space, options: Any):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space, self._options, self._workdir = space, options, str(workdir.resolve())
        url = options.storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
        waiting = {"connect_args": {"timeout": WAITING_SECONDS}} if url.startswith("sqlite") else {}
        try:
            self.study = optuna.create_study(
                storage=optuna.storages.RDBStorage(url, engine_kwargs=waiting),
                study_name=workdir.name if options.storage else "sweep",
                direction="maximize" if options.maximize else "minimize",
                pruner=PRUNERS[options.pruner](),
                load_if_exists=True,
            )
        except Exception as error:  # of the driver of any database
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"--storage={url} cannot be opened: {type(error).__name__}: {why}; name a URL of SQLAlchemy"
            ) from None
        # Once, also if several machines begin at the same time or one was killed meanwhile.
        if options.sampler == "grid" and self.study.user_attrs.get("grid_of", self._workdir) == self._workdir:
            self.study.set_user_attr("grid_of", self._workdir)
            for params in grid(space):
                self.study.enqueue_trial(params, skip_if_exists=True)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials of these states by number; none: those that have begun.

        A running trial that no workdir has taken never ends: its sweep was killed before that.
        """
        trials = self.study.get_trials(deepcopy=False, states=states or BEGUN)
        return [trial for trial in trials if trial.state != TrialState.RUNNING or self._owner(trial)]

    def interrupted(self) -> list[Trial]:
        """Return the trials that this workdir has begun and that have no result."""
        running = self.trials(TrialState.RUNNING)
        return [Trial(self.study, trial._trial_id) for trial in running if self._owner(trial) == self._workdir]

    def next(self) -> Trial | None:
        """Begin a trial; None if a grid has no more."""
        if self._options.sampler == "grid" and not self.trials(TrialState.WAITING):
            return None
        trial = self.study.ask()
        trial.set_user_attr("workdir", self._workdir)
        return trial

    def params(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial by key, and choose those that it does not have yet.

        The choice depends on the seed, the trial's number and the trials before it, not on how often the sweep was started.
        Raises: UserError: the space is not that of the trials before.
        """
        seed = int(np.random.SeedSequence([self._options.sweep_seed, trial.number]).generate_state(1)[0])
        if self._options.sampler == "tpe":
            # Trials that are running count as bad, so that several at once do not try the same.
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=self._options.jobs > 1)
        else:
            self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
        try:
            return {name: trial._suggest(name, distribution) for name, distribution in self.space.items()}
        except ValueError as error:
            raise UserError(f"{error}: the trials before had another space; use another --workdir") from None

    def best(self) -> FrozenTrial | None:
        return self.study.best_trial if self.trials(TrialState.COMPLETE) else None

    def _owner(self, trial: FrozenTrial) -> str | None:
        """Return the workdir that runs a trial. In its own storage this is the only one."""
        return trial.user_attrs.get("workdir", None if self._options.storage else self._workdir)


def grid(space: Space) -> list[dict[str, Any]]:
    """Return all combinations of choices and of the steps of ranges. Raises: UserError: a range has no step."""
    columns = []
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            columns.append(distribution.choices)
        elif distribution.step is None:
            raise UserError(f"--sampler=grid: {name} needs a range with a step, or a CategoricalDistribution of its values")
        else:
            low, step = distribution.low, distribution.step
            columns.append([low + i * step for i in range(round((distribution.high - low) / step) + 1)])
    return [dict(zip(space, values)) for values in itertools.product(*columns)]
