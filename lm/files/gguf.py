"""GGUF files, the format of llama.cpp: read the header and single tensors, and write a file tensor by tensor.

A file is "GGUF", u32 version, u64 number of tensors, u64 number of settings, the settings (name, type, value), the tensors'
entries (name, shape with the innermost axis first, type, offset), padding, and the data. All numbers are little-endian. A large
model is split into NAME-00001-of-00004.gguf and so on; the first file has the settings.

The constants and the quantised types are those of the `gguf` library. Its reader makes several NumPy views per array element
(1.7 s and 159 MiB for a vocabulary of 49,152), maps the file into memory, where what was read counts as resident, and trusts
all counts.
"""

import functools
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from lm.errors import UserError
from lm.files.saving import naming
from lm.files.untrusted import check_inside, short

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, unless general.alignment differs
BLOCKS = 1 << 12  # blocks of a quantised type that are dequantised at a time: at most a million values, which stay in the cache
MAX_AXES = 4  # GGML_MAX_DIMS
LONGEST_HEADER = 64 << 20  # bytes: a vocabulary of 260,000 tokens with its merges takes 15 MB
MAX_FILES = 1000  # of a split model
# struct formats of the types of settings, by number; 8 is a string, 9 an array
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
PLAIN = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
PLAIN |= {f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)}


class StoredTensor(NamedTuple):
    """A tensor in a file. type: its name in ggml, such as "F16" or "Q4_1". begin: offset of its first byte."""

    file: Path
    begin: int
    type: str
    shape: tuple[int, ...]  # outermost axis first, as in NumPy

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of `read`: float32 for quantised types."""
        return np.dtype(PLAIN.get(self.type, np.float32))

    @property
    def nbytes(self) -> int:
        """Return the size in the file."""
        return nbytes_of(self.type, self.shape)

    def read(self, index: int | None = None) -> np.ndarray:
        """Return the tensor, or its part at `index` of the outermost axis, in memory of its own. Dequantises."""
        shape, begin = self.shape, self.begin
        if index is not None:
            shape = shape[1:]
            begin += index * nbytes_of(self.type, shape)
        size = nbytes_of(self.type, shape)
        if self.type in PLAIN:
            return np.fromfile(self.file, np.uint8, size, offset=begin).view(self.dtype).reshape(shape)
        import gguf

        kind, (block, block_bytes) = gguf.GGMLQuantizationType[self.type], _blocks()[self.type]
        values = np.empty(math.prod(shape), np.float32)
        for first in range(0, values.size // block, BLOCKS):  # the library needs several times the memory of its result
            count = min(BLOCKS, values.size // block - first)
            raw = np.fromfile(self.file, np.uint8, count * block_bytes, offset=begin + first * block_bytes)
            values[first * block : (first + count) * block] = gguf.dequantize(raw, kind)
        return values.reshape(shape)


class GGUFFile(NamedTuple):
    """The header of a file: settings by name, tensors by name."""

    path: Path
    settings: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def is_quantised(self) -> bool:
        """Return whether most matrices have no plain type, so that 16 bits hold all that is known of their weights."""
        kinds = [tensor.type in PLAIN for tensor in self.tensors.values() if len(tensor.shape) > 1]
        return 2 * sum(kinds) < len(kinds)


def find_gguf(path: str | os.PathLike) -> Path | None:
    """Return the GGUF file that `path` means: itself, or the only one in a folder without a config.json. None if there is none.

    Raises: UserError if a folder holds several models.
    """
    path = Path(path)
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith("mmproj"))
    firsts = [file for file in files if (split := _split(file)) is None or split[0] == 1]
    if len(firsts) > 1:
        raise UserError(f"{path} holds {len(firsts)} GGUF models: name one of {', '.join(file.name for file in firsts[:4])}")
    return firsts[0] if firsts else None


def open_gguf(path: Path) -> GGUFFile:
    """Return the header of a GGUF file, or of all files of a split model, of which `path` may be any.

    Raises: UserError if a file is missing, truncated, or not what its header says.
    """
    parts = [_open_one(file) for file in files_of(path)]
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise UserError(f"{part.path} holds {min(twice)}, which another file of this model holds too; download it again")
        tensors |= part.tensors
    expected = parts[0].settings.get("split.tensors.count", len(tensors))
    if not isinstance(expected, int) or expected != len(tensors):
        raise UserError(f"{path}: the files of this model hold {len(tensors)} tensors, not split.tensors.count={expected}")
    return GGUFFile(parts[0].path, parts[0].settings, tensors)


def files_of(path: Path) -> list[Path]:
    """Return the files of the model of which `path` is one."""
    if (split := _split(path)) is None:
        return [path]
    _, count, stem = split
    if not 1 <= count <= MAX_FILES:
        raise UserError(f"{path}: its name speaks of {count} files; 1 to {MAX_FILES} can be read")
    return [path.with_name(f"{stem}-{i:05}-of-{count:05}{SUFFIX}") for i in range(1, count + 1)]


def _open_one(path: Path) -> GGUFFile:
    try:
        stat = path.stat()
        if not path.is_file():
            raise UserError(f"{path} is a folder, a pipe or a device, not a GGUF file")
        if _split(path):
            check_inside(path.parent, path)
        return _opened(path.absolute(), stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


@functools.lru_cache(maxsize=8)  # the model and its tokenizer are opened one after the other
def _opened(path: Path, size: int, changed: int) -> GGUFFile:
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise UserError(f"{path} is no GGUF file: it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Header(path, content, size)
            try:
                return header.read()
            except (ValueError, KeyError, OverflowError) as error:
                raise UserError(f"{path} is no GGUF file that can be read: {error}") from None


class _Header:
    """A position in a header, which is checked against the file's size at each step."""

    def __init__(self, path: Path, content: mmap.mmap, size: int):
        self.path, self.content, self.size, self.at = path, content, size, 4
        self.end = min(size, LONGEST_HEADER)

    def read(self) -> GGUFFile:
        version = self.number("I")
        if version not in VERSIONS:
            big = version in (v << 24 for v in VERSIONS)
            why = "it is big-endian" if big else f"it has version {version}; versions {VERSIONS} can be read"
            raise UserError(f"{self.path}: {why}; convert it again with llama.cpp's tools")
        num_tensors, num_settings = self.number("Q"), self.number("Q")
        self.check_count(num_settings, 13, "settings")
        self.check_count(num_tensors, 24, "tensors")
        settings = self.named((self.setting() for _ in range(num_settings)), "the setting")
        entries = self.named((self.entry() for _ in range(num_tensors)), "the tensor")
        alignment = settings.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment={alignment!r} is no power of two")
        data = -(-self.at // alignment) * alignment
        tensors = {}
        for name, (kind, shape, offset) in entries.items():
            tensors[name] = tensor = StoredTensor(self.path, data + offset, kind, shape)
            if offset % alignment:
                raise ValueError(f"{name} begins at offset {offset}, no multiple of {alignment}")
            if tensor.begin + tensor.nbytes > self.size:
                end = tensor.begin + tensor.nbytes
                raise UserError(f"{self.path} is cut short: it ends at byte {self.size}, {name} at {end}; download it again")
        ordered = sorted((t for t in tensors.items() if t[1].nbytes), key=lambda item: item[1].begin)
        for (one, before), (other, after) in zip(ordered, ordered[1:]):
            if before.begin + before.nbytes > after.begin:
                raise ValueError(f"{one} and {other} overlap")
        return GGUFFile(self.path, settings, tensors)

    def named(self, items: Iterator[tuple[str, Any]], what: str) -> dict[str, Any]:
        """Return the items by name. Raises ValueError for a name that is there twice."""
        values: dict[str, Any] = {}
        for name, value in items:
            if name in values:
                raise ValueError(f"it has {what} {name!r} twice")
            values[name] = value
        return values

    def check_count(self, count: int, least: int, what: str) -> None:
        """Raise UserError if the rest of the file has no room for `count` items of `least` bytes."""
        if count * least > self.end - self.at:
            raise UserError(f"{self.path} announces {count} {what}, more than its {self.end} bytes hold; download it again")

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise UserError(f"{self.path} is cut short: its header goes on after byte {self.end}; download it again")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def setting(self) -> tuple[str, Any]:
        name = self.text()
        return name, self.value(self.number("I"), name)

    def value(self, kind: int, name: str) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array(name)
        if kind not in SCALARS:
            raise ValueError(f"{name} has type {kind}, which does not exist")
        return self.number(SCALARS[kind])

    def array(self, name: str) -> list | np.ndarray:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            self.check_count(count, 8, f"values of {name}")
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{name} is an array of type {kind}, which does not exist or cannot be nested")
        itemsize = struct.calcsize(f"<{SCALARS[kind]}")
        self.check_count(count, itemsize, f"values of {name}")
        return np.frombuffer(self.take(count * itemsize), np.dtype(SCALARS[kind]).newbyteorder("<")).copy()

    def entry(self) -> tuple[str, tuple[str, tuple[int, ...], int]]:
        from gguf import GGMLQuantizationType

        name, axes = self.text(), self.number("I")
        if not 1 <= axes <= MAX_AXES:
            raise ValueError(f"{name} has {axes} axes; 1 to {MAX_AXES} are possible")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if not all(0 < n < 1 << 63 for n in shape):
            raise ValueError(f"{short(name)} has the shape {list(shape)}")
        kind, offset = self.number("I"), self.number("Q")
        if kind not in iter(GGMLQuantizationType):
            raise ValueError(f"{name} has the tensor type {kind}, which gguf {version('gguf')} does not know")
        kind = GGMLQuantizationType(kind).name
        if not _can_read(kind):
            raise ValueError(f"{name} is of type {kind}, which gguf {version('gguf')} cannot dequantise")
        nbytes_of(kind, shape)
        return name, (kind, shape, offset)


@functools.cache
def _can_read(kind: str) -> bool:
    import gguf

    if kind in PLAIN:
        return True
    try:
        gguf.dequantize(np.zeros(_blocks()[kind][1], np.uint8), gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        return False
    return True


def nbytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor in a file. Raises ValueError if its rows are no whole blocks of a quantised type."""
    block, size = _blocks()[kind]
    if shape[-1] % block:
        raise ValueError(f"{kind} has blocks of {block} values, and a row of {shape[-1]} is no multiple of that")
    return math.prod(shape) // block * size


@functools.cache
def _blocks() -> dict[str, tuple[int, int]]:
    """Return (values, bytes) of a block of each type."""
    from gguf import GGML_QUANT_SIZES

    return {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def _split(path: Path) -> tuple[int, int, str] | None:
    """Return (number, count, stem) of a file of a split model, or None."""
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", path.stem)
    return (int(match[2]), int(match[3]), match[1]) if match and path.suffix == SUFFIX else None


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    """Return float values in the bytes of a type, as uint8 for quantised ones."""
    if kind in PLAIN:
        return np.ascontiguousarray(values.astype(PLAIN[kind], copy=False))
    import gguf

    return gguf.quantize(values.astype(np.float32, copy=False), gguf.GGMLQuantizationType[kind])


@contextmanager
def writing(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]):
    """Yield write(values), to be called once for each of `tensors`, in their order; values: floats of the tensor's shape.

    Args:
      settings: by name; an integer becomes uint32, a list of integers int32, a float float32.
      tensors: name -> (type, shape).
    """
    import gguf

    writer, types = gguf.GGUFWriter(path, settings["general.architecture"]), gguf.GGUFValueType  # it adds that setting itself
    for name, value in settings.items():
        if name != "general.architecture" and value not in ("", []):  # GGUF has no empty lists
            writer.add_key_value(name, value, types.UINT32 if type(value) is int else types.get_type(value))
    for name, (kind, shape) in tensors.items():
        raw = gguf.GGMLQuantizationType[kind]
        dtype = np.dtype(PLAIN[kind]) if kind in PLAIN else np.dtype(np.uint8)
        bytes_shape = shape if kind in PLAIN else gguf.quant_shape_to_byte_shape(shape, raw)
        writer.add_tensor_info(name, bytes_shape, dtype, nbytes_of(kind, shape), raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _reserve(writer.fout[0], sum(-(-nbytes_of(*kind) // ALIGNMENT) * ALIGNMENT for kind in tensors.values()))
        left = iter(tensors.items())

        def write(values: np.ndarray) -> None:
            _, (kind, shape) = next(left)
            assert values.shape == shape, (values.shape, shape)
            data = encoded(values, kind)
            writer.write_tensor_data(data.view(np.uint16) if kind == "BF16" else data)

        yield write
        writer.flush()
        os.fsync(writer.fout[0].fileno())
    finally:
        writer.close()


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space of the data that follow the header: a full disk fails here, before the work begins."""
    with naming(Path(file.name)):
        file.flush()
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, -(-file.tell() // ALIGNMENT) * ALIGNMENT + size)
