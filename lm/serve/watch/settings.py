"""Settings of the monitor, the store and the guardrails of a server."""

import dataclasses

from lm.errors import UserError

RANGES = {
    "monitor.share": (0, 1),
    "monitor.reference": (20, 100_000),
    "monitor.recent": (20, 100_000),
    "monitor.alpha": (1e-9, 0.5),
    "monitor.canary_minutes": (0.01, 1e6),
    "store.share": (0, 1),
    "store.days": (0, 1e6),
    "store.megabytes": (0, 1e9),
    "status.seconds": (0, 3600),
    "status.samples": (1, 100_000),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """constitution: YAML file whose policies are the guardrails; "": none.
    share: of requests that are measured. reference, recent, alpha: see lm/serve/watch/behaviour.py. reference_file: a window of
      an earlier run for all checkpoints and adapters; "": each collects its own.
    judge: what calls answers unsafe beside the guardrails: classifier:FOLDER, openai:URL, or "".
    canaries: file of canaries, or "". canary_minutes: between their runs.
    store_share: of exchanges that are stored; those that are flagged or rated always are. store_days, store_megabytes: limits,
      0: none. status_seconds, status_samples: of the status page. tracing: OTLP endpoint, or "".

    Raises: UserError: a number is out of its range.
    """

    constitution: str = ""
    share: float = 1.0
    reference: int = 600
    reference_file: str = ""
    recent: int = 300
    alpha: float = 0.001
    judge: str = ""
    canaries: str = ""
    canary_minutes: float = 10.0
    store_share: float = 0.05
    store_days: float = 30.0
    store_megabytes: float = 1000.0
    status_seconds: float = 5.0
    status_samples: int = 720
    tracing: str = ""

    def __post_init__(self):
        for key, (least, most) in RANGES.items():
            value = getattr(self, key.removeprefix("monitor.").replace(".", "_"))
            if not least <= value <= most:
                raise UserError(f"{key}={value} is not in {least:g} … {most:g}")


def settings_of(config) -> Settings:
    """Return the settings of a serve config: its sections guardrails, monitor, store and status, and its key tracing.

    Raises: UserError: a number is out of its range.
    """
    sections = {"": config.monitor, "store_": config.store, "status_": config.status}
    values = {prefix + key: section[key] for prefix, section in sections.items() for key in section}
    return Settings(constitution=config.guardrails.constitution, tracing=config.tracing, **values)
