"""Import and export adapters of the PEFT library: `adapter_config.json` and `adapter_model.safetensors`.

A module M, a torch Linear or GPT-2's Conv1D, has M.lora_A.weight [rank, inputs], M.lora_B.weight [outputs, rank] and perhaps
M.lora_magnitude_vector [outputs]. Its map is c ⊙ (W + s·B·A), like ours (lm/model/linear.py). A family's rows map its inputs
and outputs to ours. A fused module is several of our matrices: on import they share its A; on export different As are stacked
and their Bs form a block diagonal, which is the same map with a higher rank. A reward model's score is stored like a fully
trained module of the library: task_type SEQ_CLS, modules_to_save score.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from lm.adapt.lora import adapter_only, with_adapter
from lm.adapt.rebuild import arrays_of, combined, each_layer, modules, with_score_head
from lm.config import Adapter, ModelConfig
from lm.convert.families import ALL, family_for
from lm.convert.files import ADAPTER_SETTINGS as SETTINGS
from lm.convert.files import ADAPTER_WEIGHTS as WEIGHTS
from lm.convert.files import check_target, make_file, read_json, tensors_of_file, write
from lm.convert.published import is_published, model_type_of
from lm.convert.rows import Place, Row, by_tensor, ours_of, places, theirs_of
from lm.errors import UserError
from lm.files.saving import written_whole
from lm.files.untrusted import check_inside, check_pattern, short
from lm.model.linear import Linear

PREFIX = "base_model.model."
SCORE = f"{PREFIX}score.weight"
A, B, MAGNITUDE = KINDS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")

# Keys of a config that are used, and keys without effect here: the tensors imply them, or they act only in training.
KNOWN = {
    *("peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "fan_in_fan_out"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights


class Lora(NamedTuple):
    """A module's adapter in float32: A [rank, inputs], B [outputs, rank], of DoRA the magnitudes [outputs], and the scale s."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None
    scale: float


class Found(NamedTuple):
    """An adapter on disk: its config, our matrices, each with its module's adapter, and the score [D] of a reward model."""

    adapter: Adapter
    matched: list[tuple[Place, Lora]]
    score: np.ndarray | None


def import_peft(folder: str | os.PathLike, config: ModelConfig, params: nnx.State) -> tuple[ModelConfig, nnx.State]:
    """Return the model with a PEFT adapter. It computes the same function as PEFT's model.

    Our adapters have one rank and one scale. So smaller ranks are padded with zeros, other scales are multiplied into B, and
    layers without an adapter have B = 0.
    Raises: UserError if the folder holds no LoRA or DoRA, one of another model, or one that our adapters cannot express.
    """
    adapter, matched, score = find_peft(folder, config)
    scale = matched[0][1].scale
    config, params = with_adapter(config, params, adapter)
    arrays = {path: on_host(x).copy() for path, x in arrays_of(adapter_only(params)).items()}
    norms = _norms(config, params, {_linear(place) for place, _ in matched}) if adapter.dora else {}
    for place, lora in matched:
        linear, few = _linear(place), len(lora.a)
        a, b = arrays[f"{linear}.lora_a"][place.index], arrays[f"{linear}.lora_b"][place.index]
        inputs, outputs = _axes(place.row, math.prod(a.shape[:-1]))
        a[..., :few] = _ours(place.row, inputs, lora.a.T, a.shape[:-1])
        b[:few] = np.moveaxis(_ours(place.row, outputs, lora.b * np.float32(lora.scale / scale), b.shape[1:]), -1, 0)
        if lora.magnitude is not None:
            norm = norms[linear][place.index]
            magnitude = _ours(place.row, outputs, lora.magnitude[:, None], norm.shape)[..., 0]
            arrays[f"{linear}.magnitude"][place.index] = magnitude - norm
    if score is not None:
        config, params = with_score_head(config, params, "reward")
        arrays["score"] = score
    current = arrays_of(params)
    return config, combined(config, current | {path: jax.device_put(x, current[path].sharding) for path, x in arrays.items()})


def find_peft(folder: str | os.PathLike, config: ModelConfig) -> Found:
    """Read a PEFT adapter and match it to a model's config.

    Raises: like import_peft.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} is no adapter of PEFT: it has no {SETTINGS}")
    check_inside(folder, folder / SETTINGS)
    settings = read_json(folder / SETTINGS)
    _check_settings(folder / SETTINGS, settings)
    loras, score = _tensors(folder, settings)
    if score is not None and score.size != config.embed_dim:
        raise UserError(f"{folder} is not for this model: its score has {score.size} inputs instead of {config.embed_dim}")
    matched = _matched(folder, config, loras)
    rank, scale = max(len(lora.a) for lora in loras.values()), matched[0][1].scale
    stabilized = bool(settings.get("use_rslora"))
    names = {re.sub(r"^stacks\.\d+\.\d+\.", "", _linear(place)) for place, _ in matched}  # such as attention.query
    adapter = Adapter(
        rank=rank,
        alpha=scale * (rank**0.5 if stabilized else rank),
        dora=bool(settings.get("use_dora")),
        rank_stabilized=stabilized,
        targets="|".join(sorted(map(re.escape, names))),
    )
    return Found(adapter, matched, score)


def export_peft(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: nnx.State,
    base: str | os.PathLike | None = None,
    origin: str | None = None,
) -> None:
    """Write a model's adapter for PEFT and vLLM into a new folder. On several hosts every process calls this.

    base: the published base model, a folder or a hub name, for adapter_config.json.
    origin: the model_type that names and fuses the modules, if the base is not here; None: the first that can hold the model.
    params: for LoRA the adapter's parameters are enough; DoRA also needs the weights.
    Raises: UserError if the folder is taken, the model has no adapter, or no family can hold it.
    """
    folder = Path(folder)
    check_target(folder)
    if not config.adapter.rank:
        raise UserError("the model has no adapter to export: model.adapter.rank=0")
    if config.vision.num_layers or config.audio.num_layers:
        raise UserError("PEFT has no place for the projector trained beside the adapter: export the model with --merge")
    if base is not None and is_published(Path(base)):
        origin = model_type_of(Path(base))
    tied = config.tie_embeddings and not config.mup_base_dim
    plainer = dataclasses.replace(config, mup_base_dim=0, tie_embeddings=tied)  # no matrix with an adapter has a μP multiplier
    fused = _by_module(family_for(plainer, origin), config)
    arrays = {path: on_host(x) for path, x in arrays_of(adapter_only(params)).items()}
    adapted = {name: rows for name, rows in fused.items() if any(f"{_linear(place)}.lora_a" in arrays for place in rows)}
    norms = {}
    if config.adapter.dora:
        norms = _norms(config, params, {_linear(place) for rows in adapted.values() for place in rows})
    loras = {name: _theirs(rows, arrays, norms) for name, rows in adapted.items()}
    out = {f"{PREFIX}{name}.{kind}": x for name, lora in loras.items() for kind, x in lora.items()}
    if config.score_head == "reward":
        out[SCORE] = on_host(arrays_of(params)["score"])[None]
    if jax.process_index() == 0:
        settings = _settings(config.adapter, {name: lora[A].shape[0] for name, lora in loras.items()}, fused)
        if config.score_head == "reward":
            settings |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
        settings["base_model_name_or_path"] = None if base is None else str(base)
        settings["fan_in_fan_out"] = any(
            0 in _axes(rows[0].row, loras[name][A].shape[1])[0]  # a matrix is [inputs, outputs], as in GPT-2
            for name, rows in adapted.items()
        )
        with written_whole(folder) as staging:
            shapes = {name: (x.dtype, x.shape) for name, x in out.items()}
            for name, place in make_file(staging / WEIGHTS, shapes).items():
                write(place, out[name])
            (staging / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _check_settings(file: Path, settings: dict) -> None:
    """Raise UserError unless this is a LoRA or DoRA that our adapters can express, with patterns whose search ends."""
    for key, expected in (("peft_type", "LORA"), ("bias", "none")):
        if (value := {"bias": "none", **settings}.get(key)) != expected:
            raise UserError(f"{file}: {key}={short(value)} cannot be read, only {expected!r} can")
    start, patterns = settings.get("init_lora_weights"), settings.get("alpha_pattern") or {}
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        raise UserError(f"{file}: init_lora_weights={start!r} changes the base: have PEFT save a plain LoRA")
    for key in sorted(settings.keys() - KNOWN):
        # PEFT names both for every classifier, and saves only the one that exists.
        heads = settings[key] if key == "modules_to_save" and isinstance(settings[key], list) else [None]
        if settings[key] and not all(head in ("score", "classifier") for head in heads):
            raise UserError(f"{file}: {key[:80]}={short(settings[key])} cannot be expressed by adapters of ours")
    alphas = patterns if isinstance(patterns, dict) else {"alpha_pattern": patterns}
    for key, value in {"lora_alpha": settings.get("lora_alpha"), **alphas}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e30 < value < 1e30:
            raise UserError(f"{file}: {short(key)}={short(value)} must be a number")
    for key in patterns:
        try:
            check_pattern(key)
        except ValueError as error:
            raise UserError(f"{file}: alpha_pattern has {short(key)}, which cannot be used: {error}") from None


def _tensors(folder: Path, settings: dict) -> tuple[dict[str, Lora], np.ndarray | None]:
    """Return the adapter of each module, and a score [D] or None. Raises UserError for tensors that are no adapter."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}: save the adapter as safetensors")
    check_inside(folder, file)
    score, parts = None, {}
    kinds = KINDS if settings.get("use_dora") else KINDS[:2]
    for name, tensor in tensors_of_file(file).items():
        if name == SCORE and len(tensor.shape) == 2 and tensor.shape[0] == 1:
            score = tensor.read().astype(np.float32)[0]
            continue
        plain = name.removesuffix(".weight") if MAGNITUDE in name else name
        kind = next((kind for kind in kinds if plain.endswith(f".{kind}")), None)
        if kind is None:
            raise UserError(f"{file} holds {name}, which cannot be expressed by adapters of ours")
        module = plain.removeprefix(PREFIX).removesuffix(f".{kind}")
        parts.setdefault(module, {})[kind] = tensor.read().astype(np.float32)
    for module, arrays in parts.items():
        if missing := [kind for kind in kinds if kind not in arrays]:
            raise UserError(f"{file} has no {missing[0]} for {module}")
        shapes = [arrays[kind].shape for kind in kinds]
        fits = len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][0] == shapes[1][1] > 0
        if not fits or shapes[2:] not in ([], [shapes[1][:1]]):
            raise UserError(f"{file}: the shapes {short(shapes)} for {module} are of no adapter")
    if not parts:
        raise UserError(f"{file} holds no adapter")
    scaled = ((name, arrays, _scale(settings, name, len(arrays[A]))) for name, arrays in parts.items())
    return {name: Lora(arrays[A], arrays[B], arrays.get(MAGNITUDE), scale) for name, arrays, scale in scaled}, score


def _matched(folder: Path, config: ModelConfig, loras: dict[str, Lora]) -> list[tuple[Place, Lora]]:
    """Return our matrices, each with the adapter of its module, for the first family that has all modules."""
    fewest: list[str] = []
    for family in ALL:
        table = _by_module(family, config)
        found, unknown = [], []
        for name, lora in loras.items():
            rows = table.get(family.canonical(f"{name}.weight").removesuffix(".weight"), [])
            sizes = (lora.b.shape[0], lora.a.shape[1])
            linear = all(place.path.endswith(".weight") for place in rows)  # embedding, head and experts have no adapters
            if not rows or not linear or rows[0].row.theirs_shape not in (sizes, sizes[::-1]):
                unknown.append(f"{name} [{sizes[0]}, {sizes[1]}]")
            found += [(place, lora) for place in rows]
        if not unknown:
            return found
        fewest = min(fewest or unknown, unknown, key=len)
    more = ", …" if len(fewest) > 3 else ""
    raise UserError(f"{folder} is not for this model: it has no matrix for {', '.join(fewest[:3])}{more}")


def _by_module(family, config: ModelConfig) -> dict[str, list[Place]]:
    """Return our parameters by transformers' module. Its models have no multi-token prediction modules."""
    found = by_tensor(place for place in places(family, config) if not place.path.startswith("mtp."))
    return {name.removesuffix(".weight"): rows for name, rows in found.items() if name.endswith(".weight")}


def _linear(place: Place) -> str:
    """Return the dotted name of our linear layer, such as stacks.0.1.attention.query."""
    return place.path.removesuffix(".weight")


def _scale(settings: dict, name: str, rank: int) -> float:
    """Return the scale s of a module, from the first pattern that matches the end of its name."""
    patterns = settings.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
    alpha = settings["lora_alpha"] if key is None else patterns[key]
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _norms(config: ModelConfig, params: nnx.State, linears: Collection[str]) -> dict[str, np.ndarray]:
    """Return ‖W‖ per output of each of these matrices."""

    def norms(params):
        return {name: each_layer(name, Linear.norm, x) for name, x in modules(config, params, Linear) if name in linears}

    return {name: on_host(x) for name, x in jax.jit(norms)(params).items()}


def _axes(row: Row, inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the input axes of a row's view (their sizes multiply to `inputs`) and the output axes, both in our order."""
    split = next(i for i in range(len(row.order) + 1) if math.prod(row.ours_shape[:i]) == inputs)
    return row.order[:split], row.order[split:]


def _part(row: Row, axes: tuple[int, ...], rank: int) -> Row:
    """Return the row of [n, rank], where n runs over these axes of their matrix; ours is [*axes, rank]."""
    ordered, first, extra = sorted(axes), row.take[0] if row.take else 0, max(0, len(row.split) - 1)
    of_view = sorted({axis if axis <= first else max(first, axis - extra) for axis in axes})
    view = (*(row.view[axis] for axis in of_view), rank)
    order = (*(ordered.index(axis) for axis in axes), len(axes))
    if row.take is None or first not in of_view:
        return Row(row.ours, row.theirs, (math.prod(view[:-1]), rank), view, order)
    take = (of_view.index(first), *row.take[1:])
    return Row(row.ours, row.theirs, (math.prod(view[:-1]), rank), view, order, take, split=row.split)


def _ours(row: Row, axes: tuple[int, ...], x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return our part of x [n, rank], as [*shape, rank]; n runs over these axes of their matrix."""
    return ours_of(_part(row, axes, x.shape[-1]), x).reshape(*shape, -1)


def _theirs_part(row: Row, axes: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """Return the inverse of `_ours`, [n, rank], zero outside our part."""
    return theirs_of([_part(row, axes, x.shape[-1])], [x])


def _theirs(rows: list[Place], arrays: dict[str, np.ndarray], norms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a module's tensors by kind. Parts without an adapter get zeros, and their norm as magnitude."""
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    magnitudes = []
    some = next(place for place in rows if f"{_linear(place)}.lora_a" in arrays)
    count = math.prod(arrays[f"{_linear(some)}.lora_a"][some.index].shape[:-1])
    for place in rows:
        linear, (inputs, outputs) = _linear(place), _axes(place.row, count)
        if f"{linear}.lora_a" in arrays:
            a = _theirs_part(place.row, inputs, arrays[f"{linear}.lora_a"][place.index]).T
            b = _theirs_part(place.row, outputs, np.moveaxis(arrays[f"{linear}.lora_b"][place.index], 0, -1))
            for i, (same, others) in enumerate(blocks):
                if np.array_equal(same, a):
                    blocks[i] = (same, others + b)
                    break
            else:
                blocks.append((a, b))
        if norms:
            magnitude = norms[linear][place.index]
            if f"{linear}.magnitude" in arrays:
                magnitude = magnitude + arrays[f"{linear}.magnitude"][place.index]
            magnitudes.append(_theirs_part(place.row, outputs, magnitude[..., None])[:, 0])
    lora = {A: np.concatenate([a for a, _ in blocks], axis=0), B: np.concatenate([b for _, b in blocks], axis=1)}
    return lora | {MAGNITUDE: np.sum(magnitudes, axis=0)} if norms else lora


def _settings(adapter: Adapter, ranks: dict[str, int], known: Iterable[str]) -> dict:
    """Return adapter_config.json's content. Modules with a higher rank get a higher alpha, so that all have the same scale."""
    other, power = {name: rank for name, rank in ranks.items() if rank != adapter.rank}, 0.5 if adapter.rank_stabilized else 1
    alphas = {name: _whole(adapter.alpha * (rank / adapter.rank) ** power) for name, rank in other.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": _whole(adapter.alpha),
        "target_modules": _endings(ranks, known),
        "rank_pattern": other,
        "alpha_pattern": alphas,
        "use_dora": adapter.dora,
        "use_rslora": adapter.rank_stabilized,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _whole(x: float) -> float:
    return int(x) if x == int(x) else x


def _endings(adapted: Collection[str], known: Iterable[str]) -> list[str]:
    """Return the shortest endings of module names that match the adapted modules and no others."""
    found, others = set(), [name for name in known if name not in adapted]
    for name in adapted:
        parts = name.split(".")
        # A number alone would also name layers.
        endings = (".".join(parts[i:]) for i in reversed(range(len(parts))) if not parts[i].isdigit())
        found.add(next(end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others)))
    return sorted(found)


def on_host(x: jax.Array) -> np.ndarray:
    """Return the whole array, also if other hosts hold parts of it."""
    return np.asarray(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
