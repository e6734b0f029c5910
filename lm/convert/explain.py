"""`python -m lm.convert explain FOLDER`: which ideas a config.json needs, and which of them the model code has."""

from collections.abc import Mapping

from lm.config import ModelConfig
from lm.convert.essence import differences
from lm.convert.families import family_of, model_config
from lm.convert.ideas import ideas_of
from lm.errors import UserError

SIZES = (
    "vocab_size",
    "num_layers",
    "embed_dim",
    "num_heads",
    "num_kv_heads",
    "mlp_dim",
    "head_dim",
    "max_positions",
    "norm_eps",
)


def explained(hf: Mapping) -> str:
    """Return lines on a config.json: its ideas as a table, the settings beyond a plain Llama, and whether it can be read."""
    rows = [("idea", "seen in", "option")]
    rows += [(idea.name, sign, f"model.{idea.option}" if idea.option else "missing") for idea, sign in ideas_of(hf)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines = lines if len(rows) > 1 else ["no idea beyond those of a plain Llama"]
    try:
        family, config = family_of(hf), model_config(hf, ())
    except UserError as error:
        return "\n".join([*lines, "", f"cannot be read: {error}"])
    plain = ModelConfig(**{key: getattr(config, key) for key in SIZES})
    settings = ", ".join(differences(config, plain)) or "none"
    return "\n".join([*lines, "", f"beyond a plain Llama: {settings}", f"can be read, as {family.name}"])
