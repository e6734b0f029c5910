"""python -m lm.convert: a trained run leaves, comes back, and is the same model to everyone."""

import json
import shutil
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import lm
from benchmarks import import_memory
from lm.convert import files
from lm.files.gguf import open_gguf
from tests.verbs import runs
from tests.verbs.test_bad_input import contents, refused, small_disk

PROMPT = "ab cd"


def line(command: str, **flags) -> list[str]:
    return [sys.executable, "-m", "lm.convert", command, *(f"--{name}={value}" for name, value in flags.items())]


def convert(command: str, devices: int = 1, **flags) -> None:
    done = runs.run(line(command, **flags), **runs.fake_devices(devices))
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    """The finished run as a Hugging Face checkpoint of several files."""
    folder = tmp_path_factory.mktemp("exported") / "published"
    convert("export", workdir=finished, to=folder, max_shard_gb=1e-4)
    return folder


def tensors(folder: Path) -> dict[str, tuple]:
    return {name: (t.dtype, t.shape, t.read().tobytes()) for name, t in files.tensors_of(folder).items()}


@pytest.mark.slow
def test_a_run_leaves_and_comes_back(finished, exported, tmp_path):
    names = {path.name for path in exported.iterdir()}
    assert names > {"config.json", "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
    assert "model-00001-of-00002.safetensors" in names
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    model, tokenizer = lm.load(finished)
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_id, tokenizer.controls["<|end|>"]]

    convert("import", devices=8, **{"from": exported, "workdir": tmp_path / "run", "mesh": "fsdp=4,tensor=2"})
    convert("export", workdir=tmp_path / "run", to=tmp_path / "again", max_shard_gb=1)
    assert tensors(tmp_path / "again") == tensors(exported)
    assert (tmp_path / "again" / "model.safetensors").is_file()
    wanted = lm.generate(model, tokenizer, [PROMPT], max_new_tokens=24, temperature=0)
    for folder in (exported, tmp_path / "run"):
        assert lm.generate(*lm.load(folder), [PROMPT], max_new_tokens=24, temperature=0) == wanted


def test_transformers_writes_the_same_text(finished, exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer, reader = (kind.from_pretrained(exported) for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer))
    asked = reader(PROMPT, return_tensors="pt")
    with torch.no_grad():
        ids = peer.generate(**asked, max_new_tokens=48, do_sample=False)[0, asked["input_ids"].shape[1] :].tolist()
    model, tokenizer = lm.load(finished)
    [text] = lm.generate(model, tokenizer, [PROMPT], max_new_tokens=48, temperature=0)
    [ours] = lm.generate(model, tokenizer, [tokenizer.prompt_ids(PROMPT)], max_new_tokens=48, temperature=0)
    assert ids[: len(ours)] == ours and ids[len(ours) :] in ([], [tokenizer.eos_id])
    assert reader.decode(ids, skip_special_tokens=True) == text and len(text) > 20


def test_the_generate_verb_reads_it_as_it_is(finished, exported):
    said = [
        runs.run([sys.executable, "-m", "lm.generate", f"--checkpoint={folder}", f"--prompt={PROMPT}", "--max_new_tokens=8"])
        for folder in (finished, exported)
    ]
    assert said[0].returncode == said[1].returncode == 0, said[1].stderr
    assert said[0].stdout == said[1].stdout != "" and said[1].stderr == ""


def test_mistakes(finished, exported, tmp_path):
    new = tmp_path / "new"
    before = contents(exported)
    for command, words in (
        ([sys.executable, "-m", "lm.convert"], ["the command is missing", "import, quantize, export", "--help"]),
        (line("imprt"), ["imprt", "import"]),
        (line("import", frm=exported, workdir=new), ["frm", "from"]),
        (line("import", workdir=new), ["--from is missing"]),
        (line("export", workdir=finished), ["--to is missing"]),
        (line("import", **{"from": exported, "workdir": new, "dtype": "float32"}), ["--dtype means nothing to import"]),
        (line("export", workdir=finished, to=new, dtype="int8"), ["dtype", "bfloat16"]),
        (line("export", workdir=finished, to=exported), ["--to=", "not empty", "new folder"]),
        (line("export", workdir=tmp_path / "none", to=new), ["none: no such folder", "a Hugging Face folder or a GGUF file"]),
        (line("import", **{"from": tmp_path, "workdir": new}), [str(tmp_path), "no config.json"]),
        (line("import", **{"from": exported, "workdir": finished}), ["--workdir=", "not empty", "new folder"]),
        (line("import", **{"from": exported, "workdir": new, "mesh": "fdsp=2"}), ["--mesh=fdsp=2", "fsdp"]),
        (line("import", **{"from": exported, "workdir": new, "mesh": "fsdp=2"}), ["mesh.fsdp=2", "has 1"]),
        (line("export", workdir=finished, to=new, dtype="q8_0"), ["--dtype=q8_0", "for a folder", "bfloat16"]),
        (line("export", workdir=finished, to=f"{new}.gguf", dtype="float32"), ["--dtype=float32", "for a GGUF file", "f32"]),
        ([*line("export", workdir=finished, to=f"{new}.gguf"), "--adapter"], ["--adapter", "--merge"]),
        (line("export", workdir=finished, to=f"{new}.gguf", max_shard_gb=1), ["--max_shard_gb", "GGUF"]),
        (line("export", workdir=finished, to=new, bits=8), ["--bits means nothing to export without --adapter"]),
        (line("export", workdir=finished, to=f"{new}.stablehlo"), [".stablehlo is not written", "NAME.gguf"]),
        (line("import", **{"from": f"{new}.gguf", "workdir": new}), ["new.gguf: no such folder"]),
        (line("import", **{"from": exported / "config.json", "workdir": new}), ["config.json: a file, not a folder"]),
    ):
        refused(command, "lm.convert: ", *words)
    assert contents(exported) == before
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_as_a_gguf_file_and_comes_back(finished, tmp_path):
    file = tmp_path / "ours.gguf"
    for _ in range(2):  # the same export again leaves its own file
        convert("export", workdir=finished, to=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "ours.gguf"]
    generate = [sys.executable, "-m", "lm.generate", f"--prompt={PROMPT}", "--max_new_tokens=8", "--temperature=0"]
    said = [runs.run([*generate, f"--checkpoint={path}"]) for path in (finished, file)]
    assert said[0].returncode == said[1].returncode == 0, said[1].stderr
    assert said[0].stdout == said[1].stdout != "" and said[1].stderr == ""
    convert("import", devices=8, **{"from": file, "workdir": tmp_path / "run", "mesh": "fsdp=4,tensor=2"})
    convert("export", workdir=tmp_path / "run", to=tmp_path / "again.gguf")
    assert (tmp_path / "again.Modelfile").exists()
    one, other = open_gguf(file).tensors, open_gguf(tmp_path / "again.gguf").tensors
    assert {name: t.read().tobytes() for name, t in one.items()} == {name: t.read().tobytes() for name, t in other.items()}


def test_a_hugging_face_folder_and_a_gguf_file_are_exported_without_a_workdir(finished, exported, tmp_path):
    convert("export", workdir=finished, to=tmp_path / "wanted.gguf")
    wanted = {name: tensor.read().tobytes() for name, tensor in open_gguf(tmp_path / "wanted.gguf").tensors.items()}
    for n, flags in enumerate(({"from": exported}, {"workdir": exported}, {"from": tmp_path / "wanted.gguf"})):
        file = tmp_path / str(n) / "ours.gguf"
        convert("export", **flags, to=file)
        assert {name: tensor.read().tobytes() for name, tensor in open_gguf(file).tensors.items()} == wanted
        assert sorted(path.name for path in file.parent.iterdir()) == ["Modelfile", "ours.gguf"]
    refused([*line("export", workdir=exported, to=tmp_path / "adapter"), "--adapter"], "has no adapter of its own")


@pytest.mark.slow
def test_a_run_goes_on_from_a_gguf_file(finished, text, tmp_path):
    """init_from of a verb: the model, its tokenizer and its weights."""
    convert("export", workdir=finished, to=tmp_path / "ours.gguf")
    runs.train(tmp_path / "run", data__input=text, init_from=tmp_path / "ours.gguf", steps=2)
    assert runs.steps_saved(tmp_path / "run")[-1] == 2
    missing = runs.line(tmp_path / "other", data__input=text, init_from="Qwen/Qwen3-0.6B", steps=2)
    refused(missing, "train.py: ", "init_from=Qwen/Qwen3-0.6B: no such folder", "hf download Qwen/Qwen3-0.6B --local-dir=DIR")


@pytest.mark.slow
def test_a_model_is_quantised_and_read_like_any_other(finished, tmp_path):
    done = runs.run(line("quantize", **{"from": finished, "workdir": tmp_path / "int8", "bits": 8}))
    assert done.returncode == 0 and "MB became" in done.stdout, done.stderr
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["model"]["quantization"]["bits"] == 8
    (exact, tokenizer), (near, _) = lm.load(finished), lm.load(tmp_path / "int8")
    ids = jnp.asarray([tokenizer.prompt_ids("ab cd ab cd ab")])
    ours, theirs = jax.nn.softmax(exact(ids)), jax.nn.softmax(near(ids))
    assert 0 < float(jnp.abs(ours - theirs).max()) < 0.05
    convert("export", workdir=tmp_path / "int8", to=tmp_path / "hf", merge=True)
    refused(line("quantize", **{"from": tmp_path / "int8", "workdir": tmp_path / "new"}), "lm.convert: ", "8 bits already")
    refused(line("quantize", **{"from": finished, "workdir": tmp_path / "new", "group": 7}), "lm.convert: ", "group=7")
    assert not (tmp_path / "new").exists()


def test_a_killed_gguf_export_leaves_no_file_and_begins_anew(finished, tmp_path):
    command = [*line("export", workdir=finished, to=tmp_path / "ours.gguf")]
    process = runs.start(command)
    runs.wait(process, lambda: (tmp_path / ".ours.gguf.unfinished").exists())
    process.send_signal(signal.SIGKILL)
    process.wait(runs.DEADLINE)
    if not (tmp_path / "ours.gguf").exists():
        convert("export", workdir=finished, to=tmp_path / "ours.gguf")
    open_gguf(tmp_path / "ours.gguf")
    assert not (tmp_path / ".ours.gguf.unfinished").exists()


def test_help_teaches():
    done = runs.run(line("--help"))
    assert done.returncode == 0 and done.stderr == ""
    for word in ("import --from=HF_DIR", "export --workdir=DIR --to=HF_DIR", "--max_shard_gb", "qwen3_moe"):
        assert word in done.stdout


def test_a_killed_import_begins_anew(exported, tmp_path):
    """Whenever the kill comes, there is no workdir or a whole one."""
    workdir = tmp_path / "run"
    flags = {"from": exported, "workdir": workdir}
    process = runs.start(line("import", **flags))
    runs.wait(process, lambda: (tmp_path / ".run.unfinished" / "checkpoints").exists())
    process.send_signal(signal.SIGKILL)
    process.wait(runs.DEADLINE)
    if not workdir.exists():
        convert("import", **flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.stderr"]
    convert("export", workdir=workdir, to=tmp_path / "again")
    assert tensors(tmp_path / "again") == tensors(exported)


def test_a_full_disk(exported, finished, tmp_path):
    with small_disk(tmp_path / "disk", "160k") as disk:
        refused(line("import", **{"from": exported, "workdir": disk / "run"}), "No space left on device", str(disk))
        refused(line("export", workdir=finished, to=disk / "out"), "No space left on device", str(disk / ".out.unfinished"))
        assert list(disk.iterdir()) == []
    with small_disk(tmp_path / "smaller", "32k") as disk:
        refused(line("export", workdir=finished, to=disk / "x.gguf"), "No space left on device", str(disk))
        assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_an_import_takes_little_more_memory_than_the_model(tmp_path):
    """Eight devices that all lie on this host: one copy of the model is the least. The checkpoint's save is in it.

    The model is large enough for the save's buffers, about 130 MiB whatever its size, to be a small part.
    """
    size = import_memory.write_checkpoint(tmp_path / "published", import_memory.llama_8b(shrink=4, layers=24), shards=4)
    found = import_memory.measure(tmp_path / "published", tmp_path / "run", devices=8)
    shutil.rmtree(tmp_path / "published")
    shutil.rmtree(tmp_path / "run")
    assert 0.9 < (found["peak"] - found["before"]) * import_memory.MIB / size < 1.3
