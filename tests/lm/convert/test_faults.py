"""Published checkpoints that are not whole, and folders that are taken: one line that says what, and nothing touched."""

import json
import struct

import numpy as np
import pytest

from lm.convert import to_published
from lm.convert.published import open_published
from lm.errors import UserError
from lm.files.saving import written_whole
from tests.lm.convert.handmade import EMBEDDING, HEAD, HF, D, F, L, V, as_contents, contents, imported, llama, written


def test_faults_of_the_tensors_are_listed(tmp_path):
    tensors = llama()
    for i in range(L):
        del tensors[f"model.layers.{i}.mlp.down_proj.weight"]
        tensors[f"model.layers.{i}.mlp.down.weight"] = np.zeros((D, F), np.float32)
    del tensors[HEAD]
    tensors["model.norm.weight"] = np.zeros((D + 1,), np.float32)
    tensors[EMBEDDING] = np.zeros((V, D), np.int64)
    tensors["model.rotary_emb.inv_freq"] = np.zeros(4, np.float32)  # older checkpoints have it, and it is no weight
    published = written(tmp_path / "a", tensors)
    with pytest.raises(UserError) as error:
        imported(published, tmp_path / "w", fsdp=8)
    told = str(error.value)
    assert "\n" not in told and str(published) in told
    for part in (
        "4 missing (lm_head.weight, model.layers.0.mlp.down_proj.weight, model.layers.1.mlp.down_proj.weight, …)",
        "3 left over (model.layers.0.mlp.down.weight, model.layers.1.mlp.down.weight, model.layers.2.mlp.down.weight)",
        f"1 of another shape (model.norm.weight [{D + 1}] instead of [{D}])",
        f"1 of no float type ({EMBEDDING} int64)",
    ):
        assert part in told, told
    assert sorted(tmp_path.iterdir()) == [published]


def test_a_second_copy_of_a_tied_head_must_be_the_embedding(tmp_path):
    tensors, hf = llama(), {**HF, "tie_word_embeddings": True}
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight, but config.json ties them"):
        open_published(written(tmp_path / "a", tensors, hf))
    tensors[HEAD] = tensors[EMBEDDING]
    workdir = imported(written(tmp_path / "b", tensors, hf), tmp_path / "w")
    to_published.to_published(workdir, tmp_path / "c")
    del tensors[HEAD]
    assert contents(tmp_path / "c") == as_contents(tensors)


def _cut(folder):
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _no_header(folder):
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"<html>Not found</html>")


def _no_json(folder):
    (folder / "model-00001-of-00002.safetensors").write_bytes(struct.pack("<Q", 8) + b"{'a': 1}" + bytes(8))


def _no_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def _no_tensor(folder):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["stray"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))


def _no_index(folder):
    (folder / "model.safetensors.index.json").unlink()


def _pickled(folder):
    _no_index(folder)
    (folder / "pytorch_model-00001-of-00002.bin").touch()


def _config(folder, **keys):
    (folder / "config.json").write_text(json.dumps({**HF, **keys}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (_cut, ["model-00002-of-00002.safetensors is cut short", "download it again"]),
        (_no_header, ["model-00001-of-00002.safetensors is no whole safetensors file"]),
        (_no_json, ["model-00001-of-00002.safetensors is no safetensors file"]),
        (_no_shard, ["model-00002-of-00002.safetensors is missing"]),
        (_no_tensor, ["index.json names 1 tensors that are in no file", "stray"]),
        (_no_index, ["neither model.safetensors nor model.safetensors.index.json"]),
        (_pickled, ["pickled PyTorch weights", "save_pretrained"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json cannot be read as JSON"]),
        (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
        (lambda folder: _config(folder, model_type="mamba"), ["model_type='mamba'", "llama"]),
        (lambda folder: _config(folder, quantization_config={"quant_method": "fp8"}), ["quantization_config"]),
    ],
)
def test_broken_checkpoints(damage, words, tmp_path):
    published = written(tmp_path / "a", llama(), shards=2)
    damage(published)
    with pytest.raises(UserError) as error:
        open_published(published)
    assert "\n" not in str(error.value)
    for word in [str(published), *words]:
        assert word in str(error.value), error.value


def test_nothing_is_ever_written_over(tmp_path):
    published = written(tmp_path / "a", llama())
    workdir = imported(published, tmp_path / "w")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for call in (
        lambda: imported(published, workdir),
        lambda: imported(published, taken),
        lambda: to_published.to_published(workdir, taken),
        lambda: to_published.to_published(workdir, published),
    ):
        with pytest.raises(UserError, match="is not empty"):
            call()
    with pytest.raises(UserError, match="mine is a file"):
        to_published.to_published(workdir, taken / "mine" / "deep")
    assert [path.name for path in taken.iterdir()] == ["mine"]
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    to_published.to_published(workdir, tmp_path / "empty")
    assert contents(tmp_path / "empty") == contents(published)
    to_published.to_published(workdir, tmp_path / "empty")  # the same export again
    assert contents(tmp_path / "empty") == contents(published)
    with pytest.raises(UserError, match="and its config.json is not that of this export: name a new folder"):
        to_published.to_published(workdir, tmp_path / "empty", dtype="float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "taken", "w"]


def test_what_fails_leaves_nothing_and_what_was_killed_is_swept_away(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "new") as beside:
        (beside / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".new.unfinished").mkdir()
    (tmp_path / ".new.unfinished" / "half").touch()
    with written_whole(tmp_path / "new") as beside:
        (beside / "whole").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["new", "new/whole"]
