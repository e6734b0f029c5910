"""python -m lm.convert with adapters of the PEFT library: a trained one leaves alone, and comes back beside its base."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm.adapt.quantize import quantize
from lm.config import Adapter, Quantization
from lm.convert.peft import SETTINGS, WEIGHTS
from lm.convert.relatives import PHI3
from lm.convert.source import open_source
from lm.convert.to_published import started_from, to_adapter, to_published
from lm.convert.to_workdir import adapter_to_workdir, write_workdir
from lm.errors import UserError
from lm.parallel.mesh import make_mesh
from tests.lm.adapt.models import adapted_model, shaken
from tests.lm.convert.test_peft import SMALL
from tests.lm.examples import parameters
from tests.verbs import runs
from tests.verbs.test_bad_input import contents, refused
from tests.verbs.test_convert import PROMPT, convert, line, tensors
from tests.verbs.test_init_from import START, read

SETTINGS_OF_RUN = dict(**START, optimizer__learning_rate=0.03, optimizer__warmup=1)


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def base(finished, tmp_path_factory) -> Path:
    """The finished run as a Hugging Face checkpoint."""
    folder = tmp_path_factory.mktemp("base") / "published"
    to_published(finished, folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base, text, tmp_path_factory) -> Path:
    """The workdir of a run of LoRA beside the weights of `base`."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    more = dict(model__adapter__rank=2, model__adapter__targets=".*")
    runs.train(workdir, init_from=base, data__input=text, **SETTINGS_OF_RUN, **more)
    return workdir


@pytest.fixture(scope="module")
def alone(adapted, tmp_path_factory) -> Path:
    """Its adapter, as PEFT has it."""
    folder = tmp_path_factory.mktemp("alone") / "adapter"
    convert("export", workdir=adapted, to=folder, adapter="true")
    return folder


@pytest.fixture(scope="module")
def imported(alone, tmp_path_factory) -> Path:
    """A workdir of the adapter, with the base that it names itself."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    convert("import", devices=2, **{"from": alone, "workdir": workdir})
    return workdir


def said(model, tokenizer) -> list[int]:
    [ids] = lm.generate(model, tokenizer, [tokenizer.prompt_ids(PROMPT)], max_new_tokens=24, temperature=0)
    return ids


@pytest.fixture(scope="module")
def wanted(adapted) -> list[int]:
    return said(*lm.load(adapted))


@pytest.mark.slow
def test_peft_puts_it_onto_the_exported_base(base, adapted, alone, wanted):
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    model, tokenizer = lm.load(adapted)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    reader = transformers.AutoTokenizer.from_pretrained(base)
    asked = reader(PROMPT, return_tensors="pt")
    with torch.no_grad():
        before = plain(**asked).logits.numpy()
        peer = peft.PeftModel.from_pretrained(plain, alone).eval()
        after = peer(**asked).logits.numpy()
        ids = peer.generate(**asked, max_new_tokens=24, do_sample=False)[0, asked["input_ids"].shape[1] :].tolist()
    np.testing.assert_allclose(after, model(asked["input_ids"].numpy()), atol=1e-4, rtol=1e-4)
    assert np.abs(after - before).max() > 0.1
    assert ids[: len(wanted)] == wanted and ids[len(wanted) :] in ([], [tokenizer.eos_id])


@pytest.mark.slow
def test_it_leaves_alone_and_comes_back(base, adapted, alone, imported, wanted, tmp_path):
    assert {path.name for path in alone.iterdir()} == {SETTINGS, WEIGHTS}
    assert json.loads((alone / SETTINGS).read_text())["base_model_name_or_path"] == str(base)
    assert runs.steps_saved(imported) == [0]
    assert open_source(imported).config.adapter.rank == 2
    assert said(*lm.load(imported)) == wanted
    theirs, ours = read(imported), read(adapted)
    assert theirs.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_allclose(theirs[name], x, atol=1e-6, err_msg=name)
    to_published(imported, tmp_path / "whole", merge=True)
    assert tensors(tmp_path / "whole").keys() == tensors(base).keys()


@pytest.mark.slow
def test_it_is_trained_on(base, alone, imported, text, tmp_path):
    workdir = tmp_path / "on"
    runs.train(workdir, init_from=imported, data__input=text, **SETTINGS_OF_RUN)
    before, after = read(imported), read(workdir)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all("lora" in name or "magnitude" in name for name in changed)
    to_adapter(workdir, tmp_path / "adapter")
    again, first = (json.loads((folder / SETTINGS).read_text()) for folder in (tmp_path / "adapter", alone))
    assert again == first  # the base is the same, though the run started from a workdir


@pytest.mark.slow
def test_a_workdir_is_a_base_too(finished, base, alone, imported, tmp_path):
    """And an adapter's own tokenizer goes with it."""
    folder = tmp_path / "adapter"
    shutil.copytree(alone, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    adapter_to_workdir(folder, str(finished), tmp_path / "run", make_mesh({"fsdp": 2}, jax.devices()[:2]))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints", "config.json", "tokenizer.fingerprint", "tokenizer.json", "tokenizer_config.json"}
    one, other = read(tmp_path / "run"), read(imported)
    assert one.keys() == other.keys()
    for name, x in other.items():
        np.testing.assert_allclose(one[name], x, atol=1e-6, err_msg=name)
    assert started_from(json.loads((tmp_path / "run" / "config.json").read_text())) == (str(finished), None)


@pytest.mark.slow
def test_modules_are_fused_as_those_of_the_start(tmp_path):
    """Also where the base is but a name, of a DoRA too, which comes back beside weights that are integers."""
    plain = dataclasses.replace(PHI3.from_hf(SMALL), dtype="float32")
    origin = {"model_type": "phi3", "from": "there"}
    config, params = adapted_model(plain, Adapter(rank=2, targets=".*", dora=True))
    write_workdir(tmp_path / "run", config, shaken(params), published=origin)
    to_adapter(tmp_path / "run", tmp_path / "adapter", base="somebody/model")
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == "somebody/model" and settings["use_dora"]
    assert settings["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]

    whole = quantize(plain, parameters(plain), Quantization(bits=8))
    write_workdir(tmp_path / "base", *whole, published=origin)
    adapter_to_workdir(tmp_path / "adapter", str(tmp_path / "base"), tmp_path / "again", make_mesh({"fsdp": -1}))
    found = open_source(tmp_path / "again").config
    assert (found.quantization.bits, found.adapter.dora) == (8, True)
    assert started_from(json.loads((tmp_path / "again" / "config.json").read_text())) == ("there", "phi3")


def test_a_base_that_is_but_a_name_is_asked_for(adapted, tmp_path):
    to_adapter(adapted, tmp_path / "adapter", base="somebody/model")
    with pytest.raises(UserError, match="is an adapter of somebody/model, which is not here.*--base"):
        adapter_to_workdir(tmp_path / "adapter", None, tmp_path / "run", make_mesh({"fsdp": -1}))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_import_stands_for_the_folder_it_came_from(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"published": {"from": "there", "model_type": "phi3"}, "model": {}}))
    assert started_from({"init_from": str(tmp_path)}) == ("there", "phi3")
    assert started_from({"init_from": str(tmp_path / "gone"), "published": {"model_type": "phi3"}})[1] == "phi3"
    assert started_from({}) == (None, None)
    (tmp_path / "config.json").write_text(json.dumps({"init_from": str(tmp_path), "model": {"adapter": {"rank": 1}}}))
    assert started_from({"init_from": str(tmp_path)}) == (str(tmp_path), None)  # no end, but no endless search


def test_mistakes(finished, base, adapted, alone, imported, tmp_path):
    new, mesh = tmp_path / "new", make_mesh({"fsdp": -1})
    before = contents(alone)
    cure = (f"import --from={alone} --base=", "adapter without its model")
    refused([*line("export", workdir=finished, to=new), "--base=x"], "--base means nothing to export without --adapter")
    refused([*line("export", workdir=adapted, to=new), "--adapter", "--merge"], "--merge means nothing to export --adapter")
    refused(line("import", **{"from": base, "workdir": new, "base": finished}), str(base), f"it has no {SETTINGS}")
    refused([sys.executable, "-m", "lm.generate", f"--checkpoint={alone}", "--prompt=a"], *cure)
    for call, words in (
        (lambda: to_adapter(finished, new), "has no adapter"),
        (lambda: to_adapter(adapted, base), "is not empty, and its adapter_"),
        (lambda: to_published(adapted, new), "--merge adds it.*--adapter exports it alone"),
        (lambda: adapter_to_workdir(alone, str(base), imported, mesh), "exists and is not empty"),
        (lambda: adapter_to_workdir(alone, str(adapted), new, mesh), "--base=.* has an adapter itself"),
        (lambda: adapter_to_workdir(alone, str(alone), new, mesh), "adapter without its model"),
        (lambda: adapter_to_workdir(alone, str(tmp_path / "none"), new, mesh), "none: no such folder"),
        (lambda: lm.load(alone), "import --from="),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert contents(alone) == before
    assert list(tmp_path.iterdir()) == []
