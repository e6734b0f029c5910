"""The study of a sweep in Optuna's storage: which trials there are, their values, and which one is next.

A trial is RUNNING in the storage from the moment that it gets its number until it is told. The user attribute `workdir` of a
trial names the sweep's workdir that runs it. So a sweep that was killed finds the trials that it has begun.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from lm.errors import UserError
from lm.sweep.space import Key, grid

NAME = "sweep"  # of the study in the workdir's own storage
PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "none": optuna.pruners.NopPruner,
}
BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
WAITING_SECONDS = 60  # that a storage in a file waits for another process


class Study:
    """A study and how it chooses: method, keys, seed, whether values are maximized."""

    def __init__(self, study: optuna.Study, method: str, keys: Sequence[Key], seed: int, workdir: Path, jobs: int):
        self.study, self.method, self.keys, self.seed, self.jobs = study, method, keys, seed, jobs
        self.workdir = str(workdir.resolve())

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials of these states by number; none: those that have begun.

        In a storage that sweeps share, a trial without a workdir never ends: its sweep was killed before it took it.
        """
        trials = self.study.get_trials(deepcopy=False, states=states or BEGUN)
        if self.study.study_name == NAME:
            return trials
        return [t for t in trials if t.state != TrialState.RUNNING or "workdir" in t.user_attrs]

    def interrupted(self) -> list[Trial]:
        """Return the trials that this workdir has begun and not told."""
        usual = self.workdir if self.study.study_name == NAME else None  # of a trial whose sweep was killed before it took it
        running = self.trials(TrialState.RUNNING)
        return [Trial(self.study, t._trial_id) for t in running if t.user_attrs.get("workdir", usual) == self.workdir]

    def next(self) -> Trial | None:
        """Begin a trial; None if a grid has no more."""
        if self.method == "grid" and not self.trials(TrialState.WAITING):
            return None
        trial = self.study.ask()
        trial.set_user_attr("workdir", self.workdir)
        return trial

    def params(self, trial: Trial) -> dict[str, Any]:
        """Return the values of a trial by key, and choose those that it does not have yet.

        The choice depends on the seed, the trial's number and the trials before it, not on how often the sweep was started.
        """
        self.study.sampler = self._sampler(trial.number)
        values = {}
        for key in self.keys:
            if key.choices:
                values[key.name] = trial.suggest_categorical(key.name, key.choices)
            elif key.whole:
                values[key.name] = trial.suggest_int(key.name, int(key.low), int(key.high), log=key.log)
            else:
                values[key.name] = trial.suggest_float(key.name, key.low, key.high, log=key.log)
        return values

    def fill_grid(self) -> None:
        """Enqueue the combinations of a grid once, also if several machines begin at once or one was killed meanwhile."""
        if self.study.user_attrs.get("grid_of", self.workdir) == self.workdir:
            self.study.set_user_attr("grid_of", self.workdir)
            for params in grid(self.keys):
                self.study.enqueue_trial(params, skip_if_exists=True)

    def best(self) -> FrozenTrial | None:
        return self.study.best_trial if self.trials(TrialState.COMPLETE) else None

    def importance(self) -> dict[str, float]:
        """Return the importance of each key by fANOVA (Hutter et al. 2014); {} before four finished trials."""
        values = {trial.value for trial in self.trials(TrialState.COMPLETE)}
        return dict(optuna.importance.get_param_importances(self.study)) if len(values) >= 4 else {}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.method == "tpe":
            # Trials that are running count as bad, so that several at once do not try the same.
            return optuna.samplers.TPESampler(seed=seed, constant_liar=self.jobs > 1)
        return optuna.samplers.RandomSampler(seed=seed)


def open_study(workdir: Path, method: str, keys: Sequence[Key], options: Any) -> Study:
    """Open or create the study. Raises UserError for a bad storage.

    options: storage, an URL of Optuna, or None for study.db in the workdir; sweep_seed, maximize, pruner, jobs. The name of a
      study in a shared storage is that of the workdir.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = options.storage or f"sqlite:///{workdir.absolute() / 'study.db'}"
    waiting = {"connect_args": {"timeout": WAITING_SECONDS}} if url.startswith("sqlite") else {}
    try:
        opened = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, engine_kwargs=waiting),
            study_name=workdir.name if options.storage else NAME,
            direction="maximize" if options.maximize else "minimize",
            pruner=PRUNERS[options.pruner](),
            load_if_exists=True,
        )
    except Exception as error:  # of the driver of any database
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--storage={url} cannot be opened: {type(error).__name__}: {why}; name an URL of SQLAlchemy") from None
    wrapped = Study(opened, method, keys, options.sweep_seed, workdir, options.jobs)
    if method == "grid":
        wrapped.fill_grid()
    return wrapped


def rows(study: Study) -> list[Mapping[str, Any]]:
    """Return the trials for the report: number, state, value, steps, params, seconds, why, best."""
    best = study.best()
    return [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state == TrialState.COMPLETE else trial.intermediate_values.get(trial.last_step),
            "step": trial.last_step,
            "params": {key.name: trial.params.get(key.name) for key in study.keys},
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "why": trial.user_attrs.get("why", ""),
            "folder": trial.user_attrs.get("folder", ""),
            "best": best is not None and trial.number == best.number,
        }
        for trial in study.trials()
    ]
