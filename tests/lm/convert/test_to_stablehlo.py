"""Exported programs: another process without this code writes the same tokens, and nothing in them is bound to a platform."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import lm
from lm.config import Adapter, ModelConfig, Quantization
from lm.convert.programs import for_decoding, programs
from lm.convert.to_stablehlo import PLATFORMS, to_stablehlo
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.model.transformer import build, skeleton
from lm.runs.checkpoint import named, plain
from tests.lm.examples import parameters
from tests.lm.weights import drawn
from tests.slow import all_but

SIZES = dict(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64, dtype="float32")
LATENT = dict(num_kv_heads=4, mla=dict(kv_rank=16, query_rank=8, rope_head_dim=8, value_head_dim=8))
WINDOWS = dict(attention_pattern=("local", "global"), window=5, tie_embeddings=True)
EXPERTS = dict(mlp_pattern=("dense", "moe"), moe=dict(num_experts=4, top_k=2, num_groups=2, expert_dim=16, shared_dim=16))
PROMPTS = [[7], [1, 5, 9, 5, 1, 5, 9, 2]]


def made(folder: Path, **settings) -> Path:
    config = ModelConfig(**SIZES | settings)
    write_workdir(folder, config, drawn(config, 3, 6.0))
    return folder


def read_elsewhere(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Runs the reader of docs/convert.md in a process that may not import this code; returns the ids of each row."""
    page = (Path(__file__).parents[3] / "docs" / "convert.md").read_text()
    [code] = re.findall(r"```python\n(import json, pathlib\n.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) <= 25
    code = code.replace('"mine.stablehlo"', repr(str(folder))).replace("[[1, 5, 9], [1, 7]]", repr(prompts))
    ours = "import sys\nassert not {'lm', 'data', 'flax'} & sys.modules.keys()\nprint(json.dumps(np.stack(ids, 1).tolist()))\n"
    done = subprocess.run(
        [sys.executable, "-c", code + ours],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [WINDOWS, LATENT], ids=["windows", "latent"])
def test_another_process_writes_the_same_tokens(settings, tmp_path):
    workdir, folder = made(tmp_path / "run", **settings), tmp_path / "out.stablehlo"
    to_stablehlo(workdir, folder, batch=2, prompt=8, length=32, max_shard_gb=5e-5)
    model, _ = lm.load(workdir)
    wanted = lm.generate(model, None, PROMPTS, max_new_tokens=25, temperature=0)
    assert read_elsewhere(folder, PROMPTS) == wanted
    assert len({*wanted[0]}) > 5 and wanted[0] != wanted[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["weights"]) > 1 and manifest["functions"]["decode"]["donated"] == ["cache"]
    assert manifest["functions"]["decode"]["dialects"] == ["stablehlo"]
    assert not [path for path in folder.iterdir() if str(Path(lm.__file__).parent).encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_bare_client_runs_the_bytecode_with_the_manifests_arguments(tmp_path):
    """A PJRT client knows no trees and no names: it takes arrays in order, and returns them in order."""
    from jax.extend.backend import get_backend
    from jaxlib import xla_client
    from safetensors.numpy import load_file

    workdir, folder = made(tmp_path / "run", **EXPERTS), tmp_path / "out.stablehlo"
    to_stablehlo(workdir, folder, batch=2, prompt=8, length=16)
    functions = json.loads((folder / "manifest.json").read_text())["functions"]
    known = {("params", name): x for name, x in load_file(folder / "model.safetensors").items()}
    lengths = np.array([len(row) for row in PROMPTS], np.int32)
    known["lengths", None] = known["position", None] = lengths
    known["tokens", None] = np.array([[0] * (8 - len(row)) + row for row in PROMPTS], np.int32)

    def called(name: str) -> None:
        code = (folder / functions[name]["mlirbc"]["cpu"]).read_bytes()
        devices = xla_client.DeviceList(tuple(jax.devices("cpu")[:1]))
        program = get_backend("cpu").compile_and_load(code, devices, xla_client.CompileOptions())
        given = [known[x["of"], x.get("name")] for x in functions[name]["arguments"]]
        for x, told in zip(given, functions[name]["arguments"], strict=True):
            assert (list(x.shape), str(x.dtype)) == (told["shape"], told["dtype"]), told
        out = program.execute([jax.device_put(x, jax.devices("cpu")[0]) for x in given])
        for x, told in zip(out, functions[name]["results"], strict=True):
            assert (list(x.shape), str(x.dtype)) == (told["shape"], told["dtype"]), told
            known[told["of"], told.get("name")] = np.asarray(x)
        known["token", None] = known["logits", None].argmax(-1).astype(np.int32)

    called("prefill")
    first = known["token", None]
    called("decode")
    wanted = lm.generate(lm.load(workdir)[0], None, PROMPTS, max_new_tokens=2, temperature=0)
    assert np.stack((first, known["token", None]), 1).tolist() == wanted


GELU = dict(activation="gelu", gated=False, positions="learned", norm="layer", qkv_bias=True, mlp_bias=True)
GROWING = dict(scaling="ntk", factor=2.0, original_positions=8)
SINKS = dict(attention_sinks=True, attention_softcap=20.0, logit_softcap=30.0, rope=GROWING)


MODELS = {
    "experts": EXPERTS | LATENT | dict(quantization=Quantization(bits=4)),
    "sinks": SINKS | dict(adapter=Adapter(rank=2, dora=True)),
    "gelu": GELU | dict(mtp_depth=1, score_head="value"),
}


@pytest.mark.parametrize("name", all_but(["sinks"], MODELS))
def test_programs_of_all_parts_are_plain_and_compute_the_model(name):
    settings = MODELS[name]
    """Each is lowered for every platform without a custom call; its logits are those of the forward pass without a cache."""
    config = ModelConfig(**SIZES | settings)
    floats = jax.jit(lambda: build(config, 0))()
    params = jax.tree.map(lambda x: x + 0.02 if jnp.issubdtype(x.dtype, jnp.floating) else x, floats)  # no part has no effect
    found, ours = programs(for_decoding(config), params, 2, 4, 8), named(plain(params))
    for call, given in ((found.prefill, found.prefill_arguments), (found.decode, found.decode_arguments)):
        text = export.export(jax.jit(call), platforms=PLATFORMS)(*given).mlir_module()
        assert "stablehlo.dot_general" in text and "custom_call" not in text
    tokens = np.random.default_rng(0).integers(0, 64, (2, 6), np.int32)
    whole = np.asarray(jax.jit(lambda model: model(tokens))(nnx.merge(skeleton(config)[0], params)))
    arrays = {name: ours[w.path] if w.repeat is None else ours[w.path][w.repeat] for name, w in found.weights.items()}
    lengths = np.array([4, 3], np.int32)
    padded = np.stack((tokens[0, :4], np.concatenate(([0], tokens[1, :3])))).astype(np.int32)
    logits, cache = jax.jit(found.prefill)(arrays, padded, lengths)
    decode = jax.jit(found.decode)
    for n in range(2):
        np.testing.assert_allclose(logits, whole[np.arange(2), lengths + n - 1], atol=2e-5)
        logits, cache = decode(arrays, cache, tokens[np.arange(2), lengths + n], lengths + n)


def test_an_adapter_is_merged_if_asked(tmp_path):
    config = ModelConfig(**SIZES | dict(num_layers=1, adapter=Adapter(rank=2)))
    write_workdir(tmp_path / "run", config, parameters(config, 3, 6.0))
    for merge, names in ((False, {"lora_a", "lora_b"}), (True, set())):
        to_stablehlo(tmp_path / "run", tmp_path / str(merge), length=8, merge=merge, dtype="bfloat16")
        told = json.loads((tmp_path / str(merge) / "manifest.json").read_text())
        weights = [x for x in told["functions"]["prefill"]["arguments"] if x["of"] == "params"]
        assert {x["name"].split(".")[-1] for x in weights} & {"lora_a", "lora_b"} == names
        assert ({x["dtype"] for x in weights} == {"bfloat16", "float32"}) == merge
        assert told["prompt"] == 4 and told["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "settings, sizes, words",
    [
        (dict(score_head="reward"), {}, "reward model, which predicts no tokens"),
        ({}, dict(prompt=8, length=8), "--prompt=8 must be below --length=8"),
        (dict(positions="learned", max_positions=16), dict(length=17), "--length=17: the model has 16 positions"),
        (
            dict(rope=dict(scaling="longrope", original_positions=8, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4)),
            dict(length=9),
            "--length=9: LongRoPE",
        ),
    ],
)
def test_what_has_no_programs_is_refused(settings, sizes, words, tmp_path):
    workdir = made(tmp_path / "run", **settings)
    with pytest.raises(UserError, match=words):
        to_stablehlo(workdir, tmp_path / "out", **sizes)
    assert not (tmp_path / "out").exists()
