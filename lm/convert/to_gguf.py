"""Export a workdir as a GGUF file for llama.cpp, Ollama and LM Studio."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.text.gguf_tokenizer import tokenizer_settings
from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import load_tokenizer
from lm.convert.families import family_for
from lm.convert.gguf.modelfile import modelfile
from lm.convert.gguf.settings import check_same, settings_of
from lm.convert.gguf.tensors import Layout, Part, layouts
from lm.convert.rows import Place, by_tensor, places, theirs_of
from lm.convert.to_published import AS_IS, Arrays, opened
from lm.errors import UserError
from lm.files.gguf import MAGIC, PLAIN, GGUFFile, StoredTensor, nbytes_of, writing
from lm.files.saving import check_unchanged
from lm.files.saving import write as save
from lm.progress import progress

# --dtype -> the type of matrices, and general.file_type (llama.cpp's llama_ftype)
TYPES = {
    "f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2), "q4_1": ("Q4_1", 3),
}  # fmt: skip
STORED = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ENDS = ("token_embd.weight", "output.weight")  # of 8 bits where the others have 4, as in llama.cpp's own files
FLOAT32 = ("ffn_gate_inp.", "position_embd.")  # matrices that stay float32


def to_gguf(workdir: Path, to: Path, *, dtype: str = AS_IS, merge: bool = False) -> Path:
    """Write the newest checkpoint of a workdir as a GGUF file, with a Modelfile for Ollama beside it. Returns the Modelfile.

    Parameters are read one by one, each with all its layers. Multi-token prediction modules are left out.

    Args:
      dtype: of matrices, one of TYPES; as-is: the embedding's stored dtype. Norms, biases, routers and learned positions are
        float32. A matrix whose rows are no whole blocks of a quantised type becomes float16.
      merge: as in `to_published`.
    Raises: UserError if another file is there, there is no checkpoint, or no architecture of llama.cpp computes the same.
    """
    if to.exists() and not (to.is_file() and to.open("rb").read(len(MAGIC)) == MAGIC):
        raise UserError(f"--to={to} exists and is no GGUF file: name a new file, since files are never overwritten")
    with opened(workdir, merge, before=dtype == AS_IS) as (saved, arrays):
        arrays = arrays.without("mtp", mtp_depth=0)
        config = arrays.config
        if config.vision.num_layers or config.audio.num_layers:
            raise UserError(f"{workdir} sees or hears (model.vision, model.audio), and GGUF holds text only: export a folder")
        if config.score_head == "reward":
            raise UserError(f"{workdir} is a reward model, which has no form in GGUF: export it to a folder")
        chosen = family_for(config, saved.get("published", {}).get("model_type"))
        if not chosen.gguf:
            raise UserError(f"{workdir} is a model of {chosen.name}, which has no form in GGUF: export it to a folder")
        settings, factors = settings_of(config, chosen)
        by_name = by_tensor(places(chosen, config))
        # The tensors of the same parameters side by side: a parameter has all layers and is read once.
        groups: dict[tuple[str, ...], list[Layout]] = {}
        for layout in layouts(config, chosen.gguf, {name: rows[0].row.theirs_shape for name, rows in by_name.items()}):
            paths = sorted({place.path for name in layout.published for place in by_name[name]})
            groups.setdefault(tuple(paths), []).append(layout)
        matrices = STORED.get(str(arrays.dtypes["embedding"]), "bf16") if dtype == AS_IS else dtype
        types = {name: ("F32", x.shape) for name, x in factors.items()}
        for layout in (layout for group in groups.values() for layout in group):
            types |= {name: (_type(name, shape, matrices), shape) for name, shape in zip(layout.gguf, layout.shapes)}
        settings |= {"general.name": workdir.name, "general.file_type": TYPES[matrices][1], "general.quantization_version": 2}
        tokenizer = load_tokenizer(workdir) if has_tokenizer(workdir) else None
        if tokenizer is not None:
            settings |= tokenizer_settings(tokenizer, config.vocab_size)
        check_same(config, chosen.gguf, _as_read(to, settings, types, factors))
        to.parent.mkdir(parents=True, exist_ok=True)
        partial, beside = to.with_name(f".{to.name}.unfinished"), to.with_name("Modelfile")
        content = modelfile(to.name, tokenizer)
        if beside.exists() and beside.read_text(encoding="utf-8") != content:
            beside = to.with_suffix(".Modelfile")
        try:
            _write(partial, settings, types, factors, groups, by_name, arrays)
            if to.exists():
                check_unchanged(partial, to)
            save(beside, content)  # first, so that a file that stands is complete
            partial.rename(to)
        finally:
            partial.unlink(missing_ok=True)
    return beside


def _type(name: str, shape: tuple[int, ...], asked: str) -> str:
    kind = TYPES[asked][0]
    if len(shape) == 1 or any(part in name for part in FLOAT32):
        return "F32"
    if kind.startswith("Q4") and name in ENDS:
        kind = "Q8_0"
    return kind if kind in PLAIN or shape[-1] % 32 == 0 else "F16"


def _as_read(path: Path, settings: Mapping[str, Any], types: Mapping, factors: Mapping[str, np.ndarray]) -> GGUFFile:
    """Return the header that a reader of the file will see."""

    tensors = {name: StoredTensor(path, 0, *kind) for name, kind in types.items()}
    tensors |= {name: Part(x.dtype, x.shape, lambda x=x: x) for name, x in factors.items()}
    floats = {name: float(np.float32(value)) for name, value in settings.items() if isinstance(value, float)}
    return GGUFFile(path, {**settings, **floats}, tensors)


def _write(path: Path, settings, types, factors, groups, by_name: Mapping[str, list[Place]], arrays: Arrays) -> None:
    total = sum(nbytes_of(*kind) for kind in types.values())
    with progress("write", total, unit="B", soon=False) as bar, writing(path, settings, types) as write:
        for x in factors.values():
            write(x)
        for paths, group in groups.items():
            ours = arrays.read(paths)
            for layout in group:
                rows = [by_name[name] for name in layout.published]
                theirs = [theirs_of([p.row for p in places], [ours[p.path][p.index] for p in places]) for places in rows]
                for name, values in zip(layout.gguf, layout.write(theirs), strict=True):
                    if types[name][0] == "F16" and values.dtype != np.float16 and np.abs(values).max(initial=0) > 65504:
                        raise UserError(f"{name} has values that float16 cannot hold: choose --dtype=bf16")
                    write(values)
                    bar.update(nbytes_of(*types[name]))
            del ours, theirs, values  # free memory before the next read
