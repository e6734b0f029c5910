"""The tensors of a GGUF file beside those of the Hugging Face checkpoint of the same model.

Names are those of the `gguf` library. A tensor is stored as published, except for these changes by llama.cpp's conversion,
which are undone:

- llama, granite, smollm3: the rows of each head's q and k are interleaved, because llama.cpp rotates neighbours and
  transformers halves.
- gemma2, gemma3: 1 is added to the weights of norms.
- experts: those of a layer are one tensor.
- deepseek2: kv_b is split into k_b, which is transposed, and v_b. Files of 2024 have attn_kv_b as published.
- gpt2: matrices are transposed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.config import ModelConfig
from lm.errors import UserError
from lm.files.gguf import StoredTensor

Arrays = Sequence[np.ndarray]


class Layout(NamedTuple):
    """Tensors of a file (gguf: names) and of a checkpoint (published: names) that hold the same numbers.

    write(published arrays) -> arrays of the file, with the shapes `shapes`. read(arrays of the file) -> the published arrays.
    stacked: the one tensor of the file has the published ones along its first axis.
    """

    gguf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    published: tuple[str, ...]
    write: Callable[[Arrays], Arrays]
    read: Callable[[Arrays], Arrays]
    stacked: bool = False


class Part(NamedTuple):
    """A published tensor made from those of a GGUF file, with the interface of lm.convert.files.Tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def layouts(config: ModelConfig, arch: str, shapes: Mapping[str, tuple[int, ...]], whole_kv: bool = False) -> list[Layout]:
    """Return the layouts of all tensors of a model.

    Args:
      shapes: of the published tensors by name.
      whole_kv: of deepseek2: whether the file has attn_kv_b.
    """
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[arch], config.num_layers)
    experts: dict[str, list[str]] = {}
    found = []
    for name, shape in shapes.items():
        if merged := re.sub(r"\.experts\.\d+\.", ".experts.", name) if ".experts." in name else "":
            experts.setdefault(merged, []).append(name)
        elif name.endswith("kv_b_proj.weight") and not whole_kv:
            found.append(_split_kv(config, name, shape, lambda part, name=name: _gguf_name(names, part)))
        else:
            found.append(_alone(config, arch, _gguf_name(names, name), name, shape))
    for merged, members in experts.items():
        shape = (len(members), *shapes[members[0]])
        found.append(
            Layout((_gguf_name(names, merged),), (shape,), tuple(members), lambda x: [np.stack(x)], lambda x: x[0], True)
        )
    return found


def _gguf_name(names, published: str) -> str:
    found = names.get_name(published.replace("e_score_correction_bias", "e_score_correction.bias"), (".weight", ".bias"))
    if found is None:
        raise UserError(f"GGUF has no name for {published}: this model cannot be written as one")
    return found


def _alone(config: ModelConfig, arch: str, name: str, published: str, shape: tuple[int, ...]) -> Layout:
    heads = next((n for key, n in ((".attn_q.", config.num_heads), (".attn_k.", config.num_kv_heads)) if key in name), 0)
    if arch in ("llama", "granite", "smollm3") and heads:
        return _one(name, published, shape, lambda x: _turn(x, heads, 2, -1), lambda x: _turn(x, heads, -1, 2))
    if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return _one(name, published, shape, lambda x: x.astype(np.float32) + 1, lambda x: x - np.float32(1))
    if arch == "gpt2" and len(shape) == 2 and name.startswith("blk."):
        return _one(name, published, shape, np.transpose, np.transpose, shape[::-1])
    return _one(name, published, shape, lambda x: x, lambda x: x)


def _one(name: str, published: str, shape, write, read, stored: tuple[int, ...] | None = None) -> Layout:
    return Layout((name,), (stored or shape,), (published,), lambda x: [write(x[0])], lambda x: [read(x[0])])


def _turn(x: np.ndarray, heads: int, first: int, second: int) -> np.ndarray:
    """Return x with the rows of each head in another order: as a matrix [first, second], transposed."""
    split = x.reshape(heads, first, second, *x.shape[1:])
    return split.swapaxes(1, 2).reshape(x.shape)


def _split_kv(config: ModelConfig, published: str, shape: tuple[int, ...], name: Callable[[str], str]) -> Layout:
    H, K, V, R = config.num_heads, config.head_dim, config.value_head_dim, config.mla.kv_rank

    def write(arrays: Arrays) -> Arrays:
        both = arrays[0].reshape(H, K + V, R)
        return [both[:, :K].transpose(0, 2, 1), both[:, K:]]

    def read(arrays: Arrays) -> Arrays:
        return [np.concatenate([arrays[0].transpose(0, 2, 1), arrays[1]], axis=1).reshape(shape)]

    stored = tuple(name(published.replace("kv_b_proj", part)) for part in ("k_b_proj", "v_b_proj"))
    return Layout(stored, ((H, R, K), (H, V, R)), (published,), write, read)


def parts_of(layout: Layout, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Part]:
    """Return the published tensors of a layout, which read those of a file when they are needed."""
    stored = [tensors[name] for name in layout.gguf]
    dtype = np.result_type(*(tensor.dtype for tensor in stored))
    if layout.stacked:
        return {name: Part(dtype, shapes[name], lambda i=i: stored[0].read(i)) for i, name in enumerate(layout.published)}
    (name,) = layout.published
    return {name: Part(dtype, shapes[name], lambda: layout.read([tensor.read() for tensor in stored])[0])}
