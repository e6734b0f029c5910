"""GGUF files: the header and every tensor as the gguf library has them, and files that are not what they say."""

import os
import struct

import numpy as np
import pytest

from lm.errors import UserError
from lm.files.gguf import PLAIN, find_gguf, open_gguf, writing

gguf = pytest.importorskip("gguf")

QUANTISED = [kind for kind in gguf.GGMLQuantizationType if kind.name not in PLAIN and kind in gguf.quants._type_traits]


def blocks(kind: gguf.GGMLQuantizationType, rows: int, count: int) -> np.ndarray:
    """Return random bytes of rows of so many blocks, uint8 [rows, bytes]."""
    return np.random.default_rng(0).integers(0, 256, (rows, count * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_a_quantised_type_is_dequantised_as_the_library_does_it(tmp_path, kind):
    raw = blocks(kind, 6, 2)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("before", np.ones(3, np.float32))
    writer.add_tensor("x", raw.reshape(2, 3, -1), raw_dtype=kind)
    written(writer)
    tensor = open_gguf(tmp_path / "x.gguf").tensors["x"]
    with np.errstate(all="ignore"):  # random bytes hold scales of every kind
        expected = gguf.dequantize(raw, kind).reshape(2, 3, -1)
        np.testing.assert_array_equal(tensor.read(), expected)
        np.testing.assert_array_equal(tensor.read(1), expected[1])
    assert tensor.shape == expected.shape and tensor.dtype == np.float32 == expected.dtype


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_what_is_written_is_read_here_and_by_the_library(tmp_path, kind):
    values = {"one": np.linspace(-2, 2, 3 * 64, dtype=np.float32).reshape(3, 64), "two": np.ones((2, 32), np.float32)}
    settings = {
        "general.architecture": "llama",
        "llama.n": 3,
        "llama.x": 1e-5,
        "llama.on": True,
        "llama.name": "é",
        "a": [1, 2],
    }
    with writing(tmp_path / "x.gguf", settings, {name: (kind, x.shape) for name, x in values.items()}) as write:
        for x in values.values():
            write(x)
    ours, theirs = open_gguf(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "x.gguf")
    assert settings.keys() == ours.settings.keys()
    for name, value in settings.items():
        read = ours.settings[name]
        assert (read.tolist() if isinstance(read, np.ndarray) else read) == theirs.fields[name].contents()
        assert np.all(read == (np.float32(value) if isinstance(value, float) else value))
    for tensor in theirs.tensors:
        read = ours.tensors[tensor.name].read()
        np.testing.assert_array_equal(read.astype(np.float32), gguf.dequantize(tensor.data, tensor.tensor_type))
        np.testing.assert_allclose(read.astype(np.float32), values[tensor.name], atol=0 if kind == "F32" else 0.3)


def written(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_split_model_is_one_model_and_a_lost_file_is_named(tmp_path):
    for part in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-{part:05}-of-00002.gguf", "llama")
        if part == 1:
            writer.add_uint32("llama.block_count", 2)
            writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"t{part}", np.full((2, 4), part, np.float32))
        written(writer)
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        model = open_gguf(tmp_path / name)
        assert model.settings["llama.block_count"] == 2
        assert {name: x.read()[0, 0] for name, x in model.tensors.items()} == {"t1": 1, "t2": 2}
    assert find_gguf(tmp_path) == tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(UserError, match="m-00002-of-00002.gguf: no such file"):
        open_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_a_folder_stands_for_its_only_model(tmp_path):
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    (tmp_path / "mmproj-a.gguf").touch()  # llama.cpp's vision encoders
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UserError, match="holds 2 GGUF models: name one of a.gguf, b.gguf"):
        find_gguf(tmp_path)
    (tmp_path / "config.json").touch()
    assert find_gguf(tmp_path) is None


# Hostile files: the header is built by the format's description, with one thing wrong.


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def tensor(name="x", shape=(4, 2), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(
    settings: tuple = (ARCHITECTURE,), tensors: tuple = (tensor(),), data=32, magic=b"GGUF", version=3, counts=None
) -> bytes:
    header = magic + struct.pack("<IQQ", version, *(counts or (len(tensors), len(settings)))) + b"".join(settings + tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def setting(kind: int, value: bytes, name="a") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


HUGE = 1 << 60
HOSTILE = {
    "empty": (b"", "no GGUF file"),
    "other magic": (file(magic=b"GGML"), "no GGUF file"),
    "only magic": (b"GGUF", "cut short"),
    "half a version": (b"GGUF\x03", "cut short"),
    "version 1": (file(version=1), "version 1"),
    "version 99": (file(version=99), "version 99"),
    "big-endian": (file(version=3 << 24), "big-endian"),
    "huge count of tensors": (file(counts=(HUGE, 1)), "announces .* tensors"),
    "huge count of settings": (file(counts=(1, HUGE)), "announces .* settings"),
    "one tensor more": (file(counts=(2, 1), data=0), "cut short|axes|tensors"),
    "one setting more": (file(counts=(1, 2)), "type|cut short"),
    "huge name": (file(settings=(struct.pack("<Q", HUGE) + b"abc",)), "cut short"),
    "huge text": (file(settings=(ARCHITECTURE, setting(8, struct.pack("<Q", HUGE)))), "cut short"),
    "unknown type of setting": (file(settings=(setting(13, b"1234"),)), "type 13"),
    "huge array": (file(settings=(setting(9, struct.pack("<IQ", 4, HUGE)),)), "announces .* values of a"),
    "huge array of bytes": (file(settings=(setting(9, struct.pack("<IQ", 0, HUGE)),)), "announces .* values of a"),
    "huge array of texts": (file(settings=(setting(9, struct.pack("<IQ", 8, HUGE)),)), "announces .* values of a"),
    "array of arrays": (file(settings=(setting(9, struct.pack("<IQ", 9, 1) * 40),)), "cannot be nested"),
    "array of unknown type": (file(settings=(setting(9, struct.pack("<IQ", 77, 1)),)), "type 77"),
    "a setting twice": (file(settings=(ARCHITECTURE, ARCHITECTURE)), "'general.architecture' twice"),
    "a tensor twice": (file(tensors=(tensor(), tensor(offset=32)), data=64), "'x' twice"),
    "no axes": (file(tensors=(tensor(shape=()),)), "0 axes"),
    "ninety axes": (file(tensors=(tensor(shape=(1,) * 90),)), "90 axes"),
    "unknown type of tensor": (file(tensors=(tensor(kind=999),)), "tensor type 999"),
    "removed type of tensor": (file(tensors=(tensor(kind=4),)), "tensor type 4"),
    "type without a dequantiser": (file(tensors=(tensor(shape=(256,), kind=15),), data=512), "Q8_K, which gguf .* dequantise"),
    "half a block": (file(tensors=(tensor(shape=(33,), kind=8),)), "blocks of 32"),
    "huge shape": (file(tensors=(tensor(shape=(HUGE, HUGE)),)), "cut short"),
    "an axis of nothing": (file(tensors=(tensor(shape=(HUGE, 0)),)), "has the shape"),
    "an axis of 2^63": (file(tensors=(tensor(shape=(1 << 63, 1)),)), "has the shape"),
    "data missing": (file(data=0), "cut short"),
    "data cut": (file(data=31), "cut short"),
    "offset beyond the end": (file(tensors=(tensor(offset=1 << 40),)), "cut short"),
    "huge offset": (file(tensors=(tensor(offset=(1 << 64) - 32),)), "cut short"),
    "offset between": (file(tensors=(tensor(offset=8),), data=64), "no multiple of 32"),
    "overlap": (file(tensors=(tensor(shape=(64,)), tensor(name="y", shape=(64,), offset=32)), data=512), "x and y overlap"),
    "alignment 0": (file(settings=(setting(4, struct.pack("<I", 0), "general.alignment"),)), "no power of two"),
    "alignment 3": (file(settings=(setting(4, struct.pack("<I", 3), "general.alignment"),)), "no power of two"),
    "alignment of text": (file(settings=(setting(8, text("32"), "general.alignment"),)), "no power of two"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gives_one_line(tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_gguf(tmp_path / "x.gguf")
    assert "\n" not in str(error.value) and str(tmp_path / "x.gguf") in str(error.value)


def test_a_large_file_without_content_has_no_large_header(tmp_path):
    """Of 1 TB that takes no space on the disk, as texts of no characters."""
    with open(tmp_path / "x.gguf", "wb") as out:
        out.write(file(settings=(setting(9, struct.pack("<IQ", 8, 1 << 36)),), data=0))
        out.truncate(1 << 40)
    with pytest.raises(UserError, match="announces 68719476736 values of a"):
        open_gguf(tmp_path / "x.gguf")


def test_a_pipe_and_a_link_that_leads_away_are_no_part_of_a_model(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UserError, match="a folder, a pipe or a device"):
        open_gguf(tmp_path / "pipe.gguf")
    (tmp_path / "secret").write_bytes(file())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m-00001-of-00001.gguf").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of"):
        open_gguf(tmp_path / "model" / "m-00001-of-00001.gguf")
    with pytest.raises(UserError, match="speaks of 99999 files"):
        open_gguf(tmp_path / "m-00001-of-99999.gguf")


def test_the_file_from_which_the_hostile_ones_are_made_is_read(tmp_path):
    (tmp_path / "x.gguf").write_bytes(file())
    found = open_gguf(tmp_path / "x.gguf")
    assert found.settings == {"general.architecture": "llama"} and found.tensors["x"].read().tolist() == [[0] * 4] * 2


def test_a_file_cut_at_any_byte_gives_one_line(tmp_path):
    whole = file(settings=(ARCHITECTURE, setting(9, struct.pack("<IQ2f", 6, 2, 1, 2))))
    for size in range(len(whole)):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            open_gguf(path)
