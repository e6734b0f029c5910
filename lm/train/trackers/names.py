"""The trackers that `config.trackers` may name. Nothing here imports them."""

import importlib.util

from lm.errors import UserError

PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy"), "trackio": ("trackio",)}  # modules that each needs
REQUIREMENTS = "requirements/trackers.txt"


def parse_trackers(text: str) -> tuple[str, ...]:
    """Return the names in "wandb,mlflow", each once. Raises UserError for an unknown name and for a missing package."""
    names = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"trackers={text}: {name!r} is none of {', '.join(PACKAGES)}; separate several by commas")
        for module in PACKAGES[name]:
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"trackers={text}: the package {module} is not installed: pip install -r {REQUIREMENTS}, "
                    f"or leave {name} out"
                )
    return names
