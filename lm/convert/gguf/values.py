"""Read the settings of a GGUF file under the name of its architecture, checked for their kind."""

import math
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.files.gguf import GGUFFile
from lm.files.untrusted import short

REQUIRED = object()


class Settings:
    """The settings of a file under the name of its architecture, checked for their kind."""

    def __init__(self, file: GGUFFile):
        self.path, self.all = file.path, file.settings
        self.architecture = self.get("general.architecture", str)

    def get(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """Return a setting. kind: int, float, bool or str. An array that repeats one value for all layers is that value."""
        if not name.startswith("general."):
            name = f"{self.architecture}.{name}"
        if name not in self.all:
            if default is REQUIRED:
                raise UserError(f"{self.path} lacks the setting {name}")
            return default
        value = self.all[name]
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind is not bool):
            value = value.tolist() if isinstance(value, np.ndarray) else value
            differs = " (it differs from layer to layer)" if isinstance(value, list) and len(value) > 1 else ""
            raise UserError(f"{self.path}: {name}={short(value)} must be of type {kind.__name__}{differs}")
        if kind is int and not 0 <= value < 1 << 31:
            raise UserError(f"{self.path}: {name}={value} must be in 0…{(1 << 31) - 1}")
        if kind is float and not 0 <= value < math.inf:
            raise UserError(f"{self.path}: {name}={value} must be a number that is at least 0")
        return decimal(value) if kind is float else value


def decimal(value: float) -> float:
    """Return the shortest decimal number with this float32 value: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
