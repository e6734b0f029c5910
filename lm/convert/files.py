"""Folders of safetensors, read and written one tensor at a time.

A file is a little-endian u64 n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, and the data, whose
offsets count from the JSON's end. A model of several files has an index that says which tensor is in which. The safetensors
library (0.8) gives NumPy no float8, copies at a tenth of the speed or maps files into memory, where what was read counts as
resident, and writes only what it is given whole. Here a tensor is read into memory of its own and written to its place.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lm.errors import UserError
from lm.files import untrusted as strangers
from lm.files.saving import check_free, naming
from lm.files.untrusted import check_inside, short

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
    "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 32 << 20  # bytes: 200,000 tensors and more
MAX_AXES = 16
BLOCK = 1 << 24  # bytes compared at a time


Shape = tuple[np.dtype, tuple[int, ...]]  # of a tensor to write


def nbytes_of(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


class Tensor(NamedTuple):
    """A tensor in a file: the file, and the offset of its first byte."""

    file: Path
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)

    def read(self) -> np.ndarray:
        """Read the tensor into its own memory."""
        flat = np.fromfile(self.file, np.uint8, self.nbytes, offset=self.begin)
        return flat.view(self.dtype).reshape(self.shape)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a model's folder by name. Raises UserError if there is none, or one of the index is missing."""
    if (folder / INDEX).is_file():
        check_inside(folder, folder / INDEX)
        index = read_json(folder / INDEX, 4 * strangers.SETTINGS).get("weight_map")
        if not isinstance(index, dict):
            raise UserError(f"{folder / INDEX} has no weight_map: it is no index of safetensors; download it again")
        if bad := [name for name in index.values() if not strangers.is_plain(name)]:
            raise UserError(f"{folder / INDEX} names the file {short(bad[0])}, which is no name of a file in the folder")
        found: dict[str, Tensor] = {}
        for name in sorted(set(index.values())):
            check_inside(folder, folder / name)
            more = tensors_of_file(folder / name)
            if twice := found.keys() & more.keys():
                raise UserError(f"{folder / name} holds {min(twice)}, which another file of this model holds too")
            found |= more
        lost = sorted(index.keys() - found.keys())
        if lost:
            raise UserError(f"{folder / INDEX} names {len(lost)} tensors that are in no file, the first is {lost[0]}")
        return found
    if (folder / SINGLE).is_file():
        check_inside(folder, folder / SINGLE)
        return tensors_of_file(folder / SINGLE)
    raise _no_weights(folder)


def check_target(to: Path) -> None:
    """Raise UserError if --to is a file, or a folder that is not empty and no export has written.

    A folder with an export passes, because the same export may be asked for again: `written_whole` compares the two.
    """
    if not any((to / name).is_file() for name in ("config.json", ADAPTER_SETTINGS)):
        check_free(to, "to")


def check_weights(folder: Path) -> None:
    """Raise UserError if a model's folder has no safetensors. Reads nothing."""
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise _no_weights(folder)


def _no_weights(folder: Path) -> UserError:
    if any(folder.glob("pytorch_model*.bin")):
        load = f"AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('NEW')"
        return UserError(
            f"{folder} holds pickled PyTorch weights and no safetensors; write them with "
            f'python -c "from transformers import AutoModelForCausalLM; {load}", and copy the tokenizer\'s files to NEW'
        )
    return UserError(f"{folder} has neither {SINGLE} nor {INDEX}: its weights are missing; download the whole folder again")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a PEFT adapter without its model."""
    whole = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return not whole and any((folder / name).is_file() for name in (ADAPTER_SETTINGS, ADAPTER_WEIGHTS))


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal bit for bit. Reads blocks, never a whole tensor."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open(one.file, "rb") as a, open(other.file, "rb") as b:
        a.seek(one.begin)
        b.seek(other.begin)
        sizes = [BLOCK] * (one.nbytes // BLOCK) + [one.nbytes % BLOCK]
        return all(a.read(size) == b.read(size) for size in sizes)


def lay_out(folder: Path, tensors: Mapping[str, Shape], shard_bytes: int) -> dict[str, Tensor]:
    """Create the files of a model with space for every tensor. Return the place of each.

    Tensors fill shards in the given order; a new shard begins when a shard would exceed `shard_bytes`.
    """
    shards: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        if shards[-1] and filled + nbytes_of(*shape) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += nbytes_of(*shape)
    if len(shards) == 1:
        return make_file(folder / SINGLE, shards[0])
    places = {}
    for i, shard in enumerate(shards, 1):
        places |= make_file(folder / f"model-{i:05}-of-{len(shards):05}.safetensors", shard)
    total = sum(place.nbytes for place in places.values())
    index = {name: place.file.name for name, place in places.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n")
    return places


def write(place: Tensor, values: np.ndarray) -> None:
    """Write a tensor to its place from `lay_out`."""
    assert values.shape == place.shape and values.dtype == place.dtype
    with naming(place.file), open(place.file, "r+b", buffering=0) as file:
        file.seek(place.begin)
        left = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        while left:  # one call writes 2 GiB at most
            left = left[file.write(left) :]


def read_json(file: Path, most: int = strangers.SETTINGS) -> dict:
    """Return the object in a JSON file of at most `most` bytes. Raises UserError."""
    try:
        value = strangers.read_json(file, most)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object")
    return value


def make_file(file: Path, tensors: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Create a file with space for every tensor. Return the place of each."""
    header, begins, end = {"__metadata__": {"format": "pt"}}, {}, 0
    # Widest dtype first, so that each tensor is aligned to its item size.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
        begins[name], end = end, end + nbytes_of(dtype, shape)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with naming(file), open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.flush()
        if hasattr(os, "posix_fallocate"):  # a full disk fails here, before the work begins
            os.posix_fallocate(out.fileno(), 0, start + end)
        else:
            out.truncate(start + end)
    return {name: Tensor(file, start + begins[name], *tensors[name]) for name in tensors}


def tensors_of_file(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file from its header. Raises UserError if it is missing, truncated or no safetensors."""
    if not file.is_file():
        raise UserError(f"{file} is missing: its index names it; download it again")
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            long = f", and its header is longer than {LONGEST_HEADER:,}" if LONGEST_HEADER < length <= size - 8 else ""
            raise UserError(f"{file} is no whole safetensors file: it has {size} bytes{long}; download it again")
        text = stream.read(length)
    try:
        header = strangers.parsed(text)
        header.pop("__metadata__", None)
        entries = {name: (DTYPES[x["dtype"]], x["shape"], x["data_offsets"]) for name, x in header.items()}
    except KeyError as error:
        raise UserError(f"{file} holds a dtype that cannot be read, or a broken header: {short(error.args[0])}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no safetensors file: its header is no JSON ({error}); download it again") from None
    found = {}
    for name, (dtype, shape, offsets) in entries.items():
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= MAX_AXES and len(offsets) == 2
        if not lists or not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, *offsets)):
            raise UserError(f"{file} is broken: {short(name)} has the shape {short(shape)} at {short(offsets)}")
        begin, end = offsets
        found[name] = tensor = Tensor(file, 8 + length + begin, np.dtype(dtype), tuple(shape))
        if end - begin != tensor.nbytes:
            raise UserError(f"{file} is broken: {short(name)} has {end - begin} bytes for {NAMES[tensor.dtype]} {list(shape)}")
        if 8 + length + end > size:
            raise UserError(
                f"{file} is cut short: it ends at byte {size}, {short(name)} at {8 + length + end}; download it again"
            )
    ordered = sorted((x for x in found.items() if x[1].nbytes), key=lambda x: x[1].begin)
    for (one, before), (other, after) in zip(ordered, ordered[1:]):
        if before.begin + before.nbytes > after.begin:
            raise UserError(f"{file} is broken: {short(one)} and {short(other)} overlap")
    return found
