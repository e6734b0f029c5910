"""Published checkpoints, into workdirs and out again: every bit and every name."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lm.config import Adapter, ModelConfig, Quantization
from lm.convert import files, to_published
from lm.convert.published import is_published, open_published
from lm.convert.source import open_source
from lm.errors import UserError
from lm.infer.load import load_model
from lm.model.transformer import build, skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.runs.checkpoint import Checkpoints, named, plain
from tests.lm.convert import peers
from tests.lm.convert.handmade import (
    BF16,
    EMBEDDING,
    HEAD,
    HF,
    D,
    F,
    G,
    H,
    K,
    L,
    V,
    as_contents,
    contents,
    imported,
    llama,
    written,
)
from tests.lm.weights import drawn as parameters
from tests.slow import all_but


def arrays(params) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named(plain(params)).items()}


def abstract_on(config: ModelConfig, mesh, dtype=None) -> nnx.State:
    abstract = skeleton(config)[1]
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s), abstract, shardings(abstract, mesh)
    )


def ours(tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The slow twin: our parameters from published ones, each matrix turned over and its layers put on each other."""

    def layers(name, *shape):
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"].T.reshape(shape) for i in range(config.num_layers)])

    layer = {
        "attention_norm.scale": layers("input_layernorm", D),
        "attention.query.weight": layers("self_attn.q_proj", D, H, K),
        "attention.key.weight": layers("self_attn.k_proj", D, G, K),
        "attention.value.weight": layers("self_attn.v_proj", D, G, K),
        "attention.output.weight": layers("self_attn.o_proj", H, K, D),
        "feed_forward_norm.scale": layers("post_attention_layernorm", D),
        "feed_forward.gate.weight": layers("mlp.gate_proj", D, F),
        "feed_forward.up.weight": layers("mlp.up_proj", D, F),
        "feed_forward.down.weight": layers("mlp.down_proj", F, D),
    }
    found = {"embedding": tensors[EMBEDDING], "norm.scale": tensors["model.norm.weight"]}
    head = {} if config.tie_embeddings else {"head": tensors[HEAD]}
    return found | head | {f"stacks.0.0.{name}": x for name, x in layer.items()}


def assert_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape), name
        assert found[name].tobytes() == np.ascontiguousarray(x).tobytes(), name


KINDS = [({}, False, 3, 1e-5), ({"norm": np.float32}, True, 1, 5.0), ({"": np.float16}, False, 1, 3e-5)]


@pytest.mark.parametrize(
    "dtypes, tied, shards, gigabytes", all_but(KINDS[:2], KINDS), ids=["bfloat16", "mixed, tied", "float16"]
)
def test_there_and_back_is_bit_equal(dtypes, tied, shards, gigabytes, tmp_path):
    tensors = llama(**dtypes)
    hf = {**HF, "tie_word_embeddings": tied, "dtype": str(tensors[EMBEDDING].dtype)}
    if tied:
        del tensors[HEAD]
    published = written(tmp_path / "published", tensors, hf, shards)
    workdir, back = imported(published, tmp_path / "workdir", fsdp=8), tmp_path / "back"

    to_published.to_published(workdir, back, max_shard_gb=gigabytes)
    assert contents(back) == as_contents(tensors)
    told = json.loads((back / "config.json").read_text())
    assert {key: told[key] for key in HF} == hf
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "published", "workdir"]

    config = open_source(workdir).config
    assert config == open_published(published).config == open_published(back).config
    wanted = ours(tensors, config)
    for place in (published, workdir, back):
        assert_bits(arrays(nnx.state(load_model(place))), wanted)
        assert is_published(place) == (place != workdir)


def test_shards_hold_what_they_may_and_are_indexed(tmp_path):
    tensors = llama()
    to_published.to_published(
        imported(written(tmp_path / "a", tensors), tmp_path / "w"), tmp_path / "b", max_shard_gb=6000 / 1e9
    )
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i:05}-of-{len(names):05}.safetensors" for i in range(1, len(names) + 1)]
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    for name in names:
        inside = [tensors[t].nbytes for t, file in index["weight_map"].items() if file == name]
        assert sum(inside) <= 6000
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        [*names, "config.json", "generation_config.json", "model.safetensors.index.json"]
    )


def test_the_safetensors_library_reads_ours_and_we_theirs(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tensors = llama(np.float32, norm=np.float16)
    to_published.to_published(imported(written(tmp_path / "a", tensors), tmp_path / "w"), tmp_path / "b")
    assert_bits(library.load_file(tmp_path / "b" / "model.safetensors"), tensors)
    (tmp_path / "c").mkdir()
    library.save_file(tensors, tmp_path / "c" / "model.safetensors")
    assert contents(tmp_path / "c") == as_contents(tensors)


def test_transformers_reads_ours(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    published = written(tmp_path / "a", llama(), shards=2)
    to_published.to_published(imported(published, tmp_path / "w"), tmp_path / "b", max_shard_gb=1e-5)
    peer, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loaded.values())
    tokens = np.random.default_rng(0).integers(0, V, (2, 12))
    with torch.no_grad():
        logits = peer(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(jax.jit(lambda model: model(tokens))(load_model(tmp_path / "b", "float32")), logits, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    all_but(
        ("gpt2", "deepseek-v3", "phi3"),
        (
            "gemma2 gemma3 gpt2 deepseek-v2 deepseek-v3 llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3-moe smollm3 olmo3 "
            "granite seed-oss ernie4-5 exaone4 cohere cohere2 glm glm4 hunyuan nemotron ministral ministral3 gpt-oss glm4-moe "
            "granite-moe ernie4-5-moe hunyuan-moe lfm2 qwen3-next bamba granite4 granite4-dense nemotron-h gemma3n"
        ).split(),
    ),
)
def test_every_family_through_files(name, tmp_path):
    pytest.importorskip("transformers")
    peers.peer(name).save_pretrained(tmp_path / "a")
    to_published.to_published(imported(tmp_path / "a", tmp_path / "w"), tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    told = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "ab"]
    assert told[0]["architectures"] == told[1]["architectures"]


@pytest.mark.parametrize("mesh", all_but([{"fsdp": 4, "tensor": 2}], [{"fsdp": 4, "tensor": 2}, {"data": 8}]))
def test_masters_of_any_mesh_from_any_source(mesh, tmp_path, monkeypatch):
    """What training starts from: float32, each where the mesh wants it, from a checkpoint or a workdir.

    The layers of a large parameter are written one by one on its devices; those of a small one are put together here.
    """
    tensors = llama()
    published = written(tmp_path / "a", tensors, shards=2)
    config, mesh = open_published(published).config, make_mesh(mesh)
    abstract = abstract_on(config, mesh, np.float32)
    wanted = {name: x.astype(np.float32) for name, x in ours(tensors, config).items()}
    for source, small in ((published, 1 << 24), (published, 0), (imported(published, tmp_path / "w"), 0)):
        monkeypatch.setattr("lm.convert.published.SMALL", small)
        params = open_source(source).load(abstract)
        assert_bits(arrays(params), wanted)
        assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, abstract)
    wrong = abstract_on(dataclasses.replace(config, mlp_dim=48), mesh)
    for source in (published, tmp_path / "w"):
        with pytest.raises(UserError, match=r"feed_forward\.down\.weight is \(3, 40, 32\) there and \(3, 48, 32\)"):
            open_source(source).load(wrong)


def test_experts_lie_where_the_mesh_wants_them(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.convert.published.SMALL", 0)
    E = 4
    hf = {**HF, "model_type": "mixtral", "num_local_experts": E, "num_experts_per_tok": 2, "sliding_window": None}
    tensors = {name: x for name, x in llama().items() if ".mlp." not in name}
    rng = np.random.default_rng(1)
    for i in range(L):
        at = f"model.layers.{i}.block_sparse_moe."
        shapes = {
            f"{at}experts.{e}.{w}.weight": shape
            for e in range(E)
            for w, shape in (("w1", (F, D)), ("w2", (D, F)), ("w3", (F, D)))
        }
        for name, shape in ({f"{at}gate.weight": (E, D)} | shapes).items():
            tensors[name] = rng.standard_normal(shape, np.float32).astype(BF16)
    published = written(tmp_path / "a", tensors, hf, shards=3)
    workdir = imported(published, tmp_path / "w", expert=4, fsdp=2)
    source = open_source(workdir)
    found = arrays(source.load(abstract_on(source.config, make_mesh({"expert": 2, "tensor": 4}), BF16)))
    for ours_name, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        x = np.stack(
            [
                np.stack([tensors[f"model.layers.{i}.block_sparse_moe.experts.{e}.{theirs}.weight"].T for e in range(E)])
                for i in range(L)
            ]
        )
        assert_bits({"x": found[f"stacks.0.0.feed_forward.{ours_name}"]}, {"x": x})
    to_published.to_published(workdir, tmp_path / "b")
    assert contents(tmp_path / "b") == as_contents(tensors)


def test_layers_of_several_dtypes_take_the_one_that_holds_them_all(tmp_path):
    tensors = llama()
    odd = "model.layers.1.mlp.up_proj.weight"
    tensors[odd] = (tensors[odd].astype(np.float32) / 3).astype(np.float16)
    published = written(tmp_path / "a", tensors)
    up = arrays(nnx.state(load_model(published)))["stacks.0.0.feed_forward.up.weight"]
    assert up.dtype == np.float32
    np.testing.assert_array_equal(up[1], tensors[odd].T.astype(np.float32))
    np.testing.assert_array_equal(up[2], tensors["model.layers.2.mlp.up_proj.weight"].T.astype(np.float32))


SMALL = dict(vocab_size=V, num_layers=2, embed_dim=D, num_heads=H, num_kv_heads=G, mlp_dim=F, dtype="float32")


def a_run(workdir: Path, **keys) -> Path:
    """A workdir with a checkpoint of a small untrained model."""
    config = ModelConfig(**SMALL | keys)
    model = config.to_dict()
    saved = {"dtype": model.pop("dtype"), "model": model}
    checkpoints = Checkpoints(workdir)
    params = jax.jit(lambda: build(config, 0))() if "adapter" in keys or "quantization" in keys else parameters(config)
    checkpoints.save(7, {"params": params}, {"config": saved})
    checkpoints.wait()
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(saved))
    return workdir


def test_another_dtype_and_a_model_of_no_family(tmp_path):
    workdir = a_run(tmp_path / "w")
    to_published.to_published(workdir, tmp_path / "a")
    to_published.to_published(workdir, tmp_path / "b", dtype="bfloat16")
    one, other = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert one.keys() == other.keys()
    for name, (dtype, shape, data) in one.items():
        rounded = np.frombuffer(data, np.float32).astype(BF16).tobytes()
        assert dtype == np.float32 and other[name] == (BF16, shape, rounded)
    told = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [t["architectures"] for t in told] == [["LlamaForCausalLM"], ["LlamaForCausalLM"]]
    assert [t["dtype"] for t in told] == ["float32", "bfloat16"]
    with pytest.raises(UserError, match="no published family"):
        to_published.to_published(a_run(tmp_path / "v", value_embeddings=1), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_must_stay_float32_does(tmp_path):
    """DeepSeek-V3's selection bias, in a checkpoint of another dtype."""
    moe = dict(
        num_experts=4,
        top_k=2,
        expert_dim=8,
        shared_dim=8,
        scores="sigmoid",
        balance_bias=True,
        group_score="top2",
        num_groups=2,
        top_groups=1,
    )
    workdir = a_run(
        tmp_path / "w",
        num_kv_heads=H,
        head_dim=8,
        mlp_pattern=("dense", "moe"),
        moe=moe,
        rope={"interleaved": True},
        mla=dict(kv_rank=8, query_rank=8, rope_head_dim=4, value_head_dim=8),
        mtp_depth=1,
    )
    to_published.to_published(workdir, tmp_path / "a", dtype="bfloat16")
    dtypes = {name: tensor.dtype for name, tensor in files.tensors_of(tmp_path / "a").items()}
    kept = {name for name, dtype in dtypes.items() if dtype == np.float32}
    assert kept == {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)}
    assert set(dtypes.values()) == {BF16, np.dtype(np.float32)}

    to_published.to_published(workdir, tmp_path / "b")  # with the module that looks ahead, which is not stacked
    assert_bits(*(arrays(nnx.state(load_model(folder))) for folder in (tmp_path / "b", workdir)))


def test_adapters_and_integers_leave_only_merged(tmp_path):
    to_published.to_published(a_run(tmp_path / "base"), tmp_path / "base out")
    base = contents(tmp_path / "base out")
    for name, keys in (("adapter", {"adapter": Adapter(rank=2)}), ("integers", {"quantization": Quantization(bits=8)})):
        workdir = a_run(tmp_path / name, **keys)
        with pytest.raises(UserError, match="--merge"):
            to_published.to_published(workdir, tmp_path / "out")
        to_published.to_published(workdir, tmp_path / f"{name} out", merge=True)
        found = contents(tmp_path / f"{name} out")
        assert {key: x[:2] for key, x in found.items()} == {key: x[:2] for key, x in base.items()}
    assert not (tmp_path / "out").exists()


def exported(config, tmp_path, to: str, **options) -> Path:
    """A model of random weights, as a workdir and from there as a published checkpoint."""
    workdir = tmp_path / f"{to} workdir"
    state = {"params": parameters(config, scale=4.0)}
    model = config.to_dict()
    meta = {"config": {"dtype": model.pop("dtype"), "model": model}}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, state, meta)
    checkpoints.wait()
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(meta["config"]))
    to_published.to_published(workdir, tmp_path / to, **options)
    return tmp_path / to


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_mup_leaves_without_its_multipliers(tied, tmp_path):
    config = ModelConfig(
        vocab_size=48,
        num_layers=1,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=4,
        mlp_dim=40,
        mup_base_dim=16,
        dtype="float32",
        tie_embeddings=tied,
        mlp_pattern=("moe",),
        moe=dict(num_experts=4, normalize=True),
    )
    tokens = np.arange(12)[None]
    forward = jax.jit(lambda model: model(tokens))
    ours = forward(nnx.merge(skeleton(config)[0], parameters(config, scale=4.0)))
    theirs = load_model(exported(config, tmp_path, "plain"))
    assert theirs.config.mup_base_dim == 0
    np.testing.assert_allclose(forward(theirs), ours, atol=1e-5)


def test_second_copies_leave_as_they_came(tmp_path):
    config = ModelConfig(
        vocab_size=48,
        num_layers=1,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=4,
        mlp_dim=40,
        mtp_depth=1,
        dtype="float32",
        mla=dict(kv_rank=8, query_rank=8, rope_head_dim=4, value_head_dim=8),
        rope=dict(interleaved=True),
        mlp_pattern=("moe",),
        moe=dict(num_experts=4, scores="sigmoid", balance_bias=True, shared_dim=40),
    )
    first = exported(config, tmp_path, "first")
    copies = {"model.layers.1.embed_tokens.weight", "model.layers.1.shared_head.head.weight"}
    assert copies < contents(first).keys()
    to_published.to_published(imported(first, tmp_path / "in"), tmp_path / "second")
    assert contents(tmp_path / "second") == contents(first)
    fewer = {name: t.read() for name, t in files.tensors_of(first).items() if name not in copies}
    hf = json.loads((first / "config.json").read_text())
    to_published.to_published(imported(written(tmp_path / "fewer", fewer, hf), tmp_path / "in again"), tmp_path / "third")
    assert contents(tmp_path / "third") == as_contents(fewer)
    fewer["model.layers.1.embed_tokens.weight"] = np.zeros((48, 32), np.float32)
    with pytest.raises(UserError, match="model.layers.1.embed_tokens.weight differs from model.embed_tokens.weight"):
        imported(written(tmp_path / "odd", fewer, hf), tmp_path / "no")
