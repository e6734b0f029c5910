"""Open a GGUF file as a published checkpoint."""

from pathlib import Path

from lm.convert.families import family_of, model_config
from lm.convert.gguf.rope import FACTORS
from lm.convert.gguf.settings import config_json_of
from lm.convert.gguf.tensors import layouts, parts_of
from lm.convert.published import Published, complaint
from lm.convert.rows import Place, places
from lm.errors import UserError
from lm.files.gguf import open_gguf

IGNORED = ("nextn",)  # parts of the names of tensors that predict further tokens
NO_FLOATS = ("I8", "I16", "I32", "I64", "F64")


def open_model(path: Path) -> Published:
    """Open a GGUF file; reads only its header and rotary factors. Quantised weights become float32 when they are read.

    Raises: UserError if it is no whole GGUF file, no family reads it, or a weight is missing, unknown or of another shape.
    """
    file = open_gguf(path)
    hf = config_json_of(file)
    try:
        family = family_of(hf)
        config = model_config(hf, ())
        found = places(family, config)
        shapes = {place.row.theirs: place.row.theirs_shape for place in found}
        whole_kv = "blk.0.attn_kv_b.weight" in file.tensors
        wanted = layouts(config, hf["model_type"], shapes, whole_kv)
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('config.json', 'its settings')}") from None
    expected = {name: shape for layout in wanted for name, shape in zip(layout.gguf, layout.shapes, strict=True)}
    here = {name: file.tensors[name] for name in expected if name in file.tensors}
    others = (name for name in file.tensors.keys() - expected.keys() if name not in FACTORS)
    text = complaint(
        missing=[name for name in expected if name not in here],
        left_over=sorted(name for name in others if not any(part in name for part in IGNORED)),
        of_another_shape=[
            f"{name} {list(tensor.shape)} instead of {list(expected[name])}"
            for name, tensor in here.items()
            if tensor.shape != expected[name]
        ],
        of_no_float_type=[f"{name} {tensor.type}" for name, tensor in here.items() if tensor.type in NO_FLOATS],
    )
    if text:
        raise UserError(f"{path}: its tensors are not those of the {hf['model_type']} that its settings describe: {text}")
    tensors = {}
    for layout in wanted:
        tensors |= parts_of(layout, file.tensors, shapes)
    by_path: dict[str, list[Place]] = {}
    for place in found:
        by_path.setdefault(place.path, []).append(place)
    return Published(path, hf["model_type"], config, by_path, tensors, False)
