"""GGUF: every family there and back bit for bit, as transformers reads it, and what it cannot hold."""

import contextlib
import dataclasses
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.config import Rope
from lm.convert.gguf.rope import llama3_factors, llama3_scaling
from lm.convert.source import on_first_device, open_source
from lm.convert.to_gguf import to_gguf
from lm.convert.to_published import to_published
from lm.convert.to_workdir import to_workdir, write_workdir
from lm.errors import UserError
from lm.files.gguf import open_gguf, writing
from lm.infer.engine.open import open_engine
from lm.infer.engine.room import Capacity
from lm.infer.load import load_model
from lm.parallel.mesh import make_mesh
from lm.runs.checkpoint import named, plain
from tests.lm.convert import gguf_models
from tests.lm.convert.gguf_models import MODELS
from tests.lm.convert.peer_configs import PLAIN
from tests.slow import all_but

KINDS = [(name, dtype) for name in MODELS for dtype in ("float32", "bfloat16")]
OFTEN = [(name, "float32") for name in ("llama", "gemma3", "phi3", "deepseek-v3", "gpt2")] + [("mixtral", "bfloat16")]
ONE = make_mesh({}, jax.devices()[:1])


def arrays(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named(plain(params)).items()}


def exported(tmp_path, name: str, dtype=jnp.float32, **keys):
    """Return (parameters, the GGUF file) of a model of MODELS with other keys of its config.json."""
    params = gguf_models.written(tmp_path / "run", name, dtype, **keys)
    to_gguf(tmp_path / "run", tmp_path / "x.gguf")
    return params, tmp_path / "x.gguf"


@pytest.mark.parametrize("name, dtype", all_but(OFTEN, KINDS))
def test_every_family_goes_there_and_back_bit_for_bit(tmp_path, name, dtype):
    params, file = exported(tmp_path, name, jnp.dtype(dtype))
    source = open_source(file)
    assert source.config == dataclasses.replace(gguf_models.config_of(name), dtype=dtype)
    before, after = arrays(params), arrays(on_first_device(source))
    assert before.keys() == after.keys()
    for path, x in before.items():
        one = np.float32(source.config.norm_plus_one and path.endswith("norm.scale"))  # a file holds 1 + w in float32
        np.testing.assert_array_equal(after[path].astype(np.float32) + one, x.astype(np.float32) + one, err_msg=path)
        kept = "float32" if path.split(".")[-1] in ("scale", "bias", "router") else dtype
        assert after[path].dtype == kept or x.ndim == 2
    assert after["embedding"].dtype == dtype
    to_workdir(file, tmp_path / "imported", ONE)
    to_gguf(tmp_path / "imported", tmp_path / "again.gguf")
    one, other = open_gguf(file), open_gguf(tmp_path / "again.gguf")
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert tensor.type == other.tensors[key].type
        np.testing.assert_array_equal(tensor.read(), other.tensors[key].read())


@pytest.mark.parametrize("name", all_but(["llama-tied"], ["llama-tied", "qwen2"]))
def test_transformers_computes_the_same_of_the_file(tmp_path, name):
    """Its reader knows neither biases of Llama nor scaled positions; llama.cpp does (test_llama_cpp.py)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    _, file = exported(tmp_path, name, rope_parameters=PLAIN)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, 300, (2, 30))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = np.asarray(jax.jit(lambda model: model(tokens))(load_model(file)))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize(
    "dtype, kinds, error", [("q8_0", {"Q8_0"}, 1 / 127), ("q4_0", {"Q4_0", "Q8_0"}, 1 / 7), ("f16", {"F16"}, 1e-3)]
)
def test_quantised_exports_are_near_and_smaller(tmp_path, llama, dtype, kinds, error):
    to_gguf(llama.parent / "run", tmp_path / "small.gguf", dtype=dtype)
    tensors = open_gguf(tmp_path / "small.gguf").tensors
    assert {t.type for t in tensors.values() if len(t.shape) > 1} == kinds
    assert (tmp_path / "small.gguf").stat().st_size < llama.stat().st_size
    before, after = (arrays(on_first_device(open_source(file))) for file in (llama, tmp_path / "small.gguf"))
    for path, x in before.items():
        bound = (error if x.ndim > 2 else 0.01) * np.abs(x).max()
        np.testing.assert_allclose(after[path], x, atol=bound, err_msg=path)


def test_an_engine_keeps_quantised_weights_in_16_bits(tmp_path, llama):
    def held(file: Path, dtype: str = "", **options) -> int:
        with contextlib.closing(open_engine(file, Capacity(rows=1), dtype=dtype, **options)) as engine:
            return engine.held[0]

    to_gguf(llama.parent / "run", tmp_path / "small.gguf", dtype="q8_0")
    assert held(llama) == held(llama, "float32") > held(llama, "bfloat16") == held(tmp_path / "small.gguf")
    assert held(llama, mesh=ONE) > held(llama, "bfloat16", mesh=ONE) == held(tmp_path / "small.gguf", mesh=ONE)


def test_a_hugging_face_model_passes_through_gguf(tmp_path):
    """HF folder → workdir → GGUF → workdir → HF folder."""
    gguf_models.written(tmp_path / "run", "qwen3")
    to_published(tmp_path / "run", tmp_path / "hf")
    to_workdir(tmp_path / "hf", tmp_path / "one", ONE)
    to_gguf(tmp_path / "one", tmp_path / "x.gguf")
    to_workdir(tmp_path / "x.gguf", tmp_path / "two", ONE)
    to_published(tmp_path / "two", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    "theta, head_dim, factor, original", [(5e5, 128, 8.0, 8192), (5e5, 64, 32.0, 8192), (1e4, 16, 8.0, 32), (1e4, 64, 4.0, 128)]
)
def test_llama_3_scaling_is_found_in_its_factors(theta, head_dim, factor, original):
    rope = Rope(theta=theta, scaling="llama3", factor=factor, original_positions=original)
    factors = [float(np.float32(x)) for x in llama3_factors(rope, head_dim)]
    found = llama3_scaling(factors, theta, "x.gguf")
    assert (found["factor"], found["high_freq_factor"], found["original_max_position_embeddings"]) == (factor, 4.0, original)
    with pytest.raises(UserError, match="not those of Llama 3"):
        llama3_scaling([*factors[:-1], 5.0], theta, "x.gguf")


# What GGUF cannot hold.

REFUSED = {
    "window": ("llama", {}, dict(attention_pattern=("local",), window=16), "lacks .*window"),
    "activation": ("llama", {}, dict(activation="relu2"), "lacks model.activation"),
    "scale": ("gemma2", dict(query_pre_attn_scalar=24), {}, "lacks model.query_scale"),
    "ntk": ("llama", dict(rope_parameters={"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e3}), {}, "scaling=ntk"),
    "lite": ("deepseek-v2", dict(q_lora_rank=None), {}, "26 or 27 layers"),
    "latent norms": ("deepseek-v3", dict(rms_norm_eps=1e-3), {}, "for latents too"),
    "other layers without positions": ("smollm3", dict(no_rope_layer_interval=2), {}, "lacks model.rotary_pattern"),
    "family": ("ernie4-5", {}, dict(norm_position="post", qk_norm="head", rope={}), "exaone4, which has no form in GGUF"),
    "reward": ("llama", {}, dict(score_head="reward", tie_embeddings=True), "reward model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, name):
    model, keys, fields, message = REFUSED[name]
    config = dataclasses.replace(gguf_models.config_of(model, **keys), **fields)
    (tmp_path / "run").mkdir()
    write_workdir(tmp_path / "run", config, gguf_models.parameters_of(config))
    with pytest.raises(UserError, match=message):
        to_gguf(tmp_path / "run", tmp_path / "new" / "x.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_value_beyond_float16_is_refused_and_nothing_is_left(tmp_path):
    config = gguf_models.config_of("llama-tied")
    params = gguf_models.parameters_of(config)
    params["embedding"].set_value(params["embedding"].get_value().at[3, 3].set(1e6))
    (tmp_path / "run").mkdir()
    write_workdir(tmp_path / "run", config, params)
    with pytest.raises(UserError, match="token_embd.weight has values that float16 cannot hold"):
        to_gguf(tmp_path / "run", tmp_path / "x.gguf", dtype="f16")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_file_is_never_overwritten(tmp_path, llama):
    run, file = llama.parent / "run", Path(shutil.copy(llama, tmp_path))
    shutil.copy(llama.with_name("Modelfile"), tmp_path)
    before = file.read_bytes(), (tmp_path / "Modelfile").read_text()
    assert to_gguf(run, file) == tmp_path / "Modelfile"  # the same export again
    with pytest.raises(UserError, match="x.gguf exists, and its x.gguf is not that of this export: name a new file"):
        to_gguf(run, file, dtype="f16")
    (tmp_path / "z.gguf").write_text("mine")
    with pytest.raises(UserError, match="z.gguf exists and is no GGUF file: name a new file"):
        to_gguf(run, tmp_path / "z.gguf")
    assert (tmp_path / "z.gguf").read_text() == "mine" and not list(tmp_path.glob(".*"))
    to_gguf(run, tmp_path / "y.gguf")
    assert before == (file.read_bytes(), (tmp_path / "Modelfile").read_text())
    assert "FROM ./y.gguf" in (tmp_path / "y.Modelfile").read_text()


def test_an_export_that_stopped_after_its_modelfile_begins_anew(tmp_path, llama):
    shutil.copy(llama.with_name("Modelfile"), tmp_path)
    assert to_gguf(llama.parent / "run", tmp_path / "x.gguf") == tmp_path / "Modelfile"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Modelfile", "x.gguf"]


# Adapters.


def test_an_adapter_finds_its_gguf_base_and_notices_another(tmp_path, llama):
    """A run's checkpoint with an adapter refers to a GGUF file as it does to a folder."""
    from lm.convert import base

    file = Path(shutil.copy(llama, tmp_path))
    (tmp_path / "adapted").mkdir()
    found = base.reference(file, tmp_path / "adapted")
    assert base.found(found, tmp_path / "adapted") == file
    with open(file, "r+b") as opened:
        opened.seek(-4, 2)
        opened.write(struct.pack("<f", 1.5))
    with pytest.raises(UserError, match="have changed"):
        base.found(found, tmp_path / "adapted")


# Hostile settings: files that are whole, and describe no model.


def changed(tmp_path, file, settings=None, tensors=None):
    """Write a copy of a file with other settings (None: without) and tensors (name -> array or None)."""
    old = open_gguf(file)
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in old.settings.items()} | (settings or {})
    values = {name: value for name, value in values.items() if value is not None}
    read = {name: tensor.read() for name, tensor in old.tensors.items()} | (tensors or {})
    read = {name: x for name, x in read.items() if x is not None}
    path = tmp_path / "changed.gguf"
    with writing(path, values, {name: ("F32", x.shape) for name, x in read.items()}) as write:
        for x in read.values():
            write(x)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("llama"), "llama")[1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"general.architecture": "mamba"}, "'mamba' is none of llama, qwen2"),
        ({"llama.block_count": None}, "lacks the setting llama.block_count"),
        ({"llama.block_count": "two"}, "must be of type int"),
        ({"llama.block_count": 3}, "missing"),
        ({"llama.block_count": 1}, "left over"),
        ({"llama.block_count": 0}, "model.num_layers|left over|layers"),
        ({"llama.embedding_length": 65}, "of another shape|settings"),
        ({"llama.attention.head_count": 0}, "head_count=0"),
        ({"llama.attention.head_count": 3}, "shape|multiple|head"),
        ({"llama.attention.head_count_kv": 0}, "shape|multiple|head|settings"),
        ({"llama.attention.head_count": [4, 2]}, "differs from layer to layer"),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, "must be of type float"),
        ({"llama.context_length": 0}, "max_positions|context|settings"),
        ({"llama.feed_forward_length": 97}, "of another shape"),
        ({"llama.rope.scaling.type": "spiral", "llama.rope.scaling.factor": 2.0}, "spiral"),
        ({"llama.expert_count": 4}, "no tensor holds so many experts"),
        ({"llama.block_count": 2**31 - 1}, "has only 36 tensors"),
        ({"llama.block_count": 2**32 - 1}, "must be in 0…2147483647"),
        ({"llama.rope.freq_base": 0.0}, "freq_base=0 must be above 0"),
        ({"llama.rope.freq_base": float("nan")}, "must be a number that is at least 0"),
        ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, "must be a number that is at least 0"),
    ],
)
def test_settings_that_describe_no_model_give_one_line(tmp_path, llama, settings, message):
    tensors = {"rope_freqs.weight": None} if "llama.rope.scaling.type" in settings else {}
    path = changed(tmp_path, llama, settings, tensors)
    with pytest.raises(UserError, match=message) as error:
        open_source(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"output_norm.weight": None}, "1 missing .output_norm.weight"),
        ({"token_embd.weight": None}, "no language model"),
        ({"token_embd.weight": np.zeros(4)}, "no language model"),
        ({"extra.weight": np.zeros(4)}, "1 left over .extra.weight"),
        ({"blk.0.attn_q.weight": np.zeros((4, 4))}, "1 of another shape .blk.0.attn_q.weight .4, 4. instead of .64, 64."),
        ({"rope_freqs.weight": np.arange(8) / 2 + 1}, "rope_freqs.weight are not those of Llama 3"),
        ({"rope_freqs.weight": np.zeros(8)}, "rope_freqs.weight holds numbers that are not above 0"),
    ],
)
def test_tensors_that_are_not_those_of_the_settings_give_one_line(tmp_path, llama, tensors, message):
    path = changed(tmp_path, llama, tensors=tensors)
    with pytest.raises(UserError, match=message) as error:
        open_source(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_the_file_from_which_those_are_made_is_read(tmp_path, llama):
    assert open_source(changed(tmp_path, llama)).config == open_source(llama).config


def test_a_file_of_whole_kv_matrices_is_read_too(tmp_path):
    """Files of 2024 hold attn_kv_b as it is published."""
    params, file = exported(tmp_path, "deepseek-v3")
    old = open_gguf(file).tensors
    H, R, K = old["blk.0.attn_k_b.weight"].shape
    tensors = {}
    for i in range(3):
        k, v = (old[f"blk.{i}.attn_{name}_b.weight"].read() for name in "kv")
        tensors[f"blk.{i}.attn_kv_b.weight"] = np.concatenate([k.transpose(0, 2, 1), v], axis=1).reshape(-1, R)
        tensors |= {f"blk.{i}.attn_{name}_b.weight": None for name in "kv"}
    found = arrays(on_first_device(open_source(changed(tmp_path, file, tensors=tensors))))
    for path, x in arrays(params).items():
        np.testing.assert_array_equal(found[path], x)


def test_a_model_without_a_tokenizer_continues_token_ids(llama):
    model, tokenizer = lm.load(llama)
    assert tokenizer is None
    (row,) = lm.generate(model, None, [[1, 2, 3]], max_new_tokens=5, temperature=0)
    assert len(row) == 5
    with pytest.raises(UserError, match="has no tokenizer"):
        lm.generate(model, None, ["a"], max_new_tokens=5)
