"""Import a published checkpoint, or a model with a published adapter, as a workdir at step 0."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh

from data.text.fingerprints import record_tokenizer
from data.text.hf_tokenizer import FILES, copy_files, has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.adapt import lora
from lm.adapt.merging import Recipe, check, merge
from lm.adapt.quantize import check_targets, memory, quantize
from lm.config import ModelConfig, Quantization
from lm.convert.essence import essence
from lm.convert.files import ADAPTER_SETTINGS, read_json
from lm.convert.multimodal.processor import copy_processor
from lm.convert.peft import find_peft, import_peft
from lm.convert.published import is_published, model_type_of, open_published
from lm.convert.source import Source, as_stored, open_source
from lm.convert.tokenizer_files import import_tokenizer
from lm.errors import UserError
from lm.files.saving import check_free, write_json, written_whole
from lm.files.untrusted import short
from lm.model.transformer import skeleton
from lm.parallel.mesh import check_fit, shapes_on
from lm.runs.checkpoint import Checkpoints
from lm.runs.own_code import keep_own_code
from lm.runs.workdir import read_config


def to_workdir(folder: Path, workdir: Path, mesh: Mesh) -> None:
    """Write config.json, checkpoints/0, and the files of the tokenizer and of the processor, if any.

    Every parameter keeps its stored dtype. The model is on the mesh; the host holds one tensor at a time.
    Raises: UserError if the workdir exists and is not empty, or a checkpoint cannot be read.
    """
    check_free(workdir, "workdir")
    source, origin = _opened(folder)
    _check_fit(mesh, source.config)
    with written_whole(workdir) as staging:
        import_tokenizer(folder, staging)  # first, because it may fail and is fast
        copy_processor(folder, staging)
        write_workdir(staging, source.config, _load(source, mesh), published=origin)


def adapter_to_workdir(folder: Path, base: str | None, workdir: Path, mesh: Mesh) -> None:
    """Write the same files as `to_workdir` for a model with the PEFT adapter in `folder`.

    base: the model, a Hugging Face folder or a workdir; None: the one named in adapter_config.json, if it is a local folder.
    The tokenizer is the adapter's, if it has one, else the model's.
    Raises: UserError if the workdir exists and is not empty, there is no base, it already has an adapter, or the adapter does
    not fit it.
    """
    check_free(workdir, "workdir")
    root = Path(base or _named_base(folder)).absolute()
    source, origin = _opened(root)
    if source.config.adapter.rank:
        raise UserError(f"--base={root} has an adapter itself: export it with --merge, and name that")
    _check_fit(mesh, source.config)
    find_peft(folder, source.config)  # before the slow reading of the model
    with written_whole(workdir) as staging:
        _tokenizer(folder, root, staging)
        copy_processor(root, staging)
        params = _load(source, mesh)
        with jax.set_mesh(mesh):
            config, params = import_peft(folder, source.config, params)
        write_workdir(staging, config, params, published=origin, init_from=str(root))


def quantized_to_workdir(path: Path, workdir: Path, quantization: Quantization, mesh: Mesh) -> tuple[int, int]:
    """Write the same files as `to_workdir` for a model with quantised weights. Returns its bytes before and after.

    path: a workdir, a Hugging Face folder or a GGUF file. The model must fit the devices before and after at once.
    Raises: UserError if the workdir exists and is not empty, the weights are quantised already, none matches, or the group
    size does not fit; and for a model with an adapter, which must be merged first.
    """
    check_free(workdir, "workdir")
    source = open_source(path)
    if source.config.adapter.rank:
        raise UserError(f"--from={path} has an adapter: export it with --merge first, and name that")
    _check_fit(mesh, source.config)
    check_targets(dataclasses.replace(source.config, quantization=quantization))
    with written_whole(workdir) as staging:
        import_tokenizer(path, staging)
        copy_processor(path, staging)
        params = _load(source, mesh)
        with jax.set_mesh(mesh):
            config, after = quantize(source.config, params, quantization)
        write_workdir(staging, config, after, published=_origin_of(path), init_from=str(path))
    return memory(params), memory(after)


def merged_to_workdir(paths: Sequence[Path], base: Path | None, workdir: Path, recipe: Recipe, mesh: Mesh) -> None:
    """Write the same files as `to_workdir` for models merged into one (lm/adapt/merging.py), all of which must fit the devices.

    Adapters are merged into their weights first, and quantised weights become float32. The tokenizer is that of the base, or of
    the first model.
    Raises: UserError if the workdir exists and is not empty, a model cannot be read, the recipe does not fit, or the models
    differ in what they compute by their configs, or in their tokenizers.
    """
    check_free(workdir, "workdir")
    check(recipe, len(paths), base is not None)
    places = [*([base] if base else []), *paths]
    sources = [open_source(path) for path in places]
    for path, source in zip(places[1:], sources[1:], strict=True):
        _check_alike(places[0], sources[0].config, path, source.config)
    _check_fit(mesh, sources[0].config)
    with written_whole(workdir) as staging:
        import_tokenizer(places[0], staging)
        copy_processor(places[0], staging)
        with jax.set_mesh(mesh):
            configs, models = zip(*(lora.merge(one.config, _load(one, mesh), dequantize=True) for one in sources))
            merged = merge(configs[0], recipe, models[1:] if base else models, models[0] if base else None)
        about = {"base": str(base) if base else None, "models": list(map(str, paths)), **dataclasses.asdict(recipe)}
        write_workdir(staging, configs[0], merged, published=_origin_of(places[0]), merge=about)


def _check_alike(first: Path, config: ModelConfig, path: Path, other: ModelConfig) -> None:
    """Raise UserError if two models cannot be merged. Their longest contexts may differ, unless positions are learned."""
    one, two = (essence(x) | {"mup_base_dim": x.mup_base_dim, "score_head": x.score_head} for x in (config, other))
    for key in sorted(one, key=lambda key: (isinstance(one[key], tuple), key)):  # patterns last: they have all layers
        if one[key] != two[key] and not (key == "max_positions" and config.positions != "learned"):
            raise UserError(f"{first} and {path} are no models of one shape: model.{key} is {one[key]} and {two[key]}")
    if has_tokenizer(first) and has_tokenizer(path) and load_tokenizer(first).fingerprint != load_tokenizer(path).fingerprint:
        raise UserError(f"{first} and {path} have different tokenizers, so their tokens do not mean the same")


def _named_base(folder: Path) -> str:
    named = read_json(folder / ADAPTER_SETTINGS).get("base_model_name_or_path")
    if named is not None and (not isinstance(named, str) or "\0" in named):
        raise UserError(f"{folder / ADAPTER_SETTINGS}: base_model_name_or_path={short(named)} must be a text")
    if named and os.path.isdir(named):
        return named
    what = f"{named}, which is not here" if named else "no model that it tells"
    raise UserError(f"{folder} is an adapter of {what}: name the model's folder with --base")


def _tokenizer(folder: Path, base: Path, to: Path) -> None:
    if not has_tokenizer(folder):
        import_tokenizer(base, to)
        return
    copy_files(base, to)  # only the ids that end a completion are used
    for name in FILES:
        if name != "generation_config.json":
            (to / name).unlink(missing_ok=True)
    import_tokenizer(folder, to)


def _opened(path: Path) -> tuple[Source, dict]:
    """Return the source of a model, and the `published` entry of its workdir: the folder that its tensors are those of."""
    if not is_published(path):
        return open_source(path), read_config(path).get("published", {})
    published = open_published(path)
    origin = {"from": str(published.folder), "model_type": published.model_type, "twice": published.twice}
    return Source.of(published), origin


def _origin_of(path: Path) -> dict:
    """Return the same of any model, for an export whose tensors are no longer those of the folder."""
    return {"model_type": model_type_of(path)} if is_published(path) else read_config(path).get("published", {})


def _check_fit(mesh: Mesh, config: ModelConfig) -> None:
    """Raise UserError if the mesh does not split this model."""
    check_fit(mesh, config, math.prod(mesh.shape.values()), 1)


def _load(source: Source, mesh: Mesh) -> nnx.State:
    """Load the parameters onto the mesh in their stored dtypes."""
    return source.load(as_stored(source, shapes_on(skeleton(source.config)[1], mesh)))


def write_workdir(workdir: Path, config: ModelConfig, params: nnx.State, **more) -> None:
    """Write a workdir at step 0; its tokenizer, if any, is there already. more: other keys of its config, such as init_from."""
    model = config.to_dict()
    saved = {"dtype": model.pop("dtype"), "model": model, **more}
    checkpoints = Checkpoints(workdir, compress=False)
    checkpoints.save(0, {"params": params}, {"config": saved, "tokens": 0})
    checkpoints.wait()
    checkpoints.close()
    write_json(workdir / "config.json", saved)
    keep_own_code(saved, workdir)
    if has_tokenizer(workdir):  # at the end, because the fingerprint depends on the other files of the folder
        record_tokenizer(workdir, load_tokenizer(workdir).fingerprint)
