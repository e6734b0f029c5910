"""Convert rotary positions between Hugging Face configs, new and old, and ours.

New: `rope_parameters` with `rope_type`, `rope_theta` and the keys of the type. Old: `rope_theta` at the top level and
`rope_scaling` with `type` or `rope_type`. If both are present, precedence is that of transformers.
"""

from collections.abc import Mapping

from lm.config import ModelConfig, Rope
from lm.errors import UserError

YARN_KEYS = ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor")
# By `Rope.scaling`: the keys of Rope that it uses besides theta.
KEYS = {
    "none": (),
    "linear": ("factor",),
    "ntk": ("factor", "original_positions"),
    "yarn": ("factor", "original_positions", *YARN_KEYS),
    "llama3": ("factor", "original_positions", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "original_positions", "short_factor", "long_factor", "attention_factor"),
}
ROPE_TYPES = {method: method for method in KEYS} | {"none": "default", "ntk": "dynamic"}  # in config.json
METHODS = {rope_type: method for method, rope_type in ROPE_TYPES.items()}
# Keys that config.json may leave out, with their defaults.
DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": 0.0}


def parameters_of(hf: Mapping) -> dict:
    """Return the config's dict of rotary parameters, or an empty one."""
    return dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})


def rope_of(hf: Mapping, *, theta: float = 10_000.0, partial: bool = False, **more) -> Rope:
    """Return the Rope of a config whose layers all use the same one.

    Args:
      theta: the family's default.
      partial: whether the family can rotate only a part of each head.
      more: other keys of Rope, such as `interleaved`.
    """
    parameters = parameters_of(hf)
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            raise UserError(f"rope_parameters.{key} in config.json is a second rotary embedding: this family has only one")
    fraction = _first(parameters.get("partial_rotary_factor"), hf.get("partial_rotary_factor"), 1.0)
    if fraction != 1 and not partial:
        raise UserError(f"partial_rotary_factor={fraction} in config.json: this family rotates whole heads")
    theta = _first(parameters.get("rope_theta"), hf.get("rope_theta"), theta)
    return scaled(parameters, hf, theta=float(theta), fraction=float(fraction), **more)


def scaled(parameters: Mapping, hf: Mapping, **more) -> Rope:
    """Return a Rope from one rotary embedding's dict. hf: the config around it. more: keys of Rope not in `parameters`."""
    name = _first(parameters.get("rope_type"), parameters.get("type"), "default")
    if name not in METHODS:
        raise UserError(f"rope_type={name!r} in config.json is none of {', '.join(METHODS)}")

    def number(key, default=None) -> float:
        value = _first(parameters.get(key), default)
        if not isinstance(value, (int, float)):
            raise UserError(f"rope_parameters.{key}={value!r} in config.json must be a number for rope_type={name!r}")
        return float(value)

    method = METHODS[name]
    if method == "none":
        return Rope(**more)
    longest = hf["max_position_embeddings"]
    # The dynamic method scales from the context in the config; the others name the context before scaling.
    outer, inner = hf.get("original_max_position_embeddings"), parameters.get("original_max_position_embeddings")
    original = longest if method == "ntk" else _first(outer, inner, longest)
    values = {"original_positions": original, "truncate": bool(parameters.get("truncate", True))}
    for key in KEYS[method]:
        if key in ("short_factor", "long_factor"):
            values[key] = _numbers(parameters, key)
        elif key == "factor":
            values[key] = number(key, longest / original if method in ("yarn", "longrope") else None)
        elif key not in values:
            values[key] = number(key, DEFAULTS.get(key)) or DEFAULTS.get(key, 0.0)
    return Rope(scaling=method, **{key: values[key] for key in KEYS[method]}, **more)


def parameters_for(rope: Rope) -> dict:
    """Return `rope_parameters` of transformers 5, with only required keys and those that differ from its defaults."""
    found = {"rope_type": ROPE_TYPES[rope.scaling], "rope_theta": rope.theta}
    if rope.fraction != 1:
        found["partial_rotary_factor"] = rope.fraction
    for key in KEYS[rope.scaling]:
        value = getattr(rope, key)
        if key == "original_positions" and rope.scaling != "ntk":
            found["original_max_position_embeddings"] = value
        elif key != "original_positions" and (value or DEFAULTS.get(key) != 0.0):
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def ropes_of(hf: Mapping, *, theta: float, local_theta: float) -> dict:
    """Return `rope` and `local_rope_theta` of a config with one rotary embedding for each kind of layer.

    theta, local_theta: the family's defaults. That of local layers is not scaled.
    """
    by_kind = hf.get("rope_parameters") or {}
    if not all(isinstance(value, Mapping) for value in by_kind.values()):
        raise UserError("rope_parameters in config.json must hold full_attention and sliding_attention")
    whole, local = ({**(by_kind.get(f"{kind}_attention") or {})} for kind in ("full", "sliding"))
    whole |= hf.get("rope_scaling") or {}
    for key, value in (("partial_rotary_factor", 1.0), ("rope_type", "default")):
        for parameters in (whole, local) if key != "rope_type" else (local,):
            if parameters.get(key, value) not in (value, None):
                raise UserError(f"{key}={parameters[key]!r} in config.json cannot be expressed: only {value!r} can")
    theta = _first(whole.get("rope_theta"), hf.get("rope_theta"), theta)
    local_theta = _first(local.get("rope_theta"), hf.get("rope_local_base_freq"), local_theta)
    return {"rope": scaled(whole, hf, theta=float(theta)), "local_rope_theta": float(local_theta)}


def keys_by_kind(config: ModelConfig) -> dict:
    """Return `rope_parameters` with one rotary embedding for each kind of layer; the inverse of `ropes_of`."""
    by_kind = {"full_attention": config.rope, "sliding_attention": config.local_rope}
    return {"rope_parameters": {kind: parameters_for(rope) for kind, rope in by_kind.items()}}


def keys_for(rope: Rope) -> dict:
    """Return the top-level keys: `rope_parameters` for transformers 5, and the two older keys for older readers."""
    parameters = parameters_for(rope)
    older = {"rope_theta": rope.theta, "rope_parameters": parameters}
    if rope.fraction != 1:
        older["partial_rotary_factor"] = rope.fraction
    if rope.scaling != "none":
        older["rope_scaling"] = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return older


def _first(*values):
    return next((value for value in values if value is not None), None)


def _numbers(parameters: Mapping, key: str) -> tuple[float, ...]:
    value = parameters.get(key)
    if not isinstance(value, (list, tuple)) or not all(isinstance(x, (int, float)) for x in value):
        raise UserError(f"rope_parameters.{key} in config.json must be a list of numbers, one per frequency")
    return tuple(float(x) for x in value)
