"""Adapters to and from PEFT: against the library itself, and against the merged weights for every way of fusing."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest

from lm.adapt import lora
from lm.adapt.rebuild import arrays_of
from lm.config import Adapter
from lm.convert import families
from lm.convert.families import LLAMA, PHI3
from lm.convert.files import tensors_of_file
from lm.convert.peft import SETTINGS, WEIGHTS, export_peft, import_peft
from lm.convert.rows import places, theirs_of
from lm.convert.source import on_first_device, open_source
from lm.errors import UserError
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.adapt.models import adapted_model, logits, shaken
from tests.lm.convert import peers
from tests.lm.examples import parameters
from tests.slow import all_but

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "model_type": "deepseek_v3",
    "num_nextn_predict_layers": 1,
}
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
DELTAS = {
    **SMALL,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 3,
}
FAMILIES = {
    "llama": (LLAMA, SMALL),
    "phi3": (PHI3, SMALL),
    "gpt2": (families.GPT2, GPT2),
    "deepseek": (families.DEEPSEEK, LATENT),
    "qwen3_5": (families.QWEN3_5, DELTAS),
}


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def published(tmp_path, family, hf):
    """A folder that says which family a model is of, as export needs it."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family.model_types[0], **hf}))
    return folder


def modules_of(family, config):
    found = {}
    for place in places(family, config):
        if not place.path.startswith("mtp."):
            found.setdefault(place.row.theirs.removesuffix(".weight"), []).append(place)
    return found


SOME = r"attention\.(value|query_up|key_up)|feed_forward\.(up|down)|feed_forward\.shared\.gate"


@pytest.mark.parametrize(
    "name, targets",
    all_but([("qwen3_5", SOME)], [("llama", ".*"), ("gpt2", ".*"), ("phi3", SOME), ("deepseek", SOME), ("qwen3_5", SOME)]),
)
def test_what_is_exported_is_the_change_of_the_merged_weights(name, targets, tmp_path):
    """c ⊙ (W + s·B·A), made from the files alone, is the tensor that merging gives; and it comes back as it left."""
    family, hf = FAMILIES[name]
    adapter = Adapter(rank=3, alpha=5.0, targets=targets, dora=True, rank_stabilized=targets != ".*")
    plain = dataclasses.replace(family.from_hf(hf), dtype="float32")
    config, params = adapted_model(plain, adapter)
    params = shaken(params)
    export_peft(tmp_path / "adapter", config, params, published(tmp_path, family, hf))
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    files = {key: x.read() for key, x in tensors_of_file(tmp_path / "adapter" / WEIGHTS).items()}
    base, merged = arrays_of(params), arrays_of(lora.merge(config, params)[1])
    adapted = set()
    for module, found in modules_of(family, config).items():
        whole = [theirs_of([p.row for p in found], [np.asarray(x[p.path][p.index]) for p in found]) for x in (base, merged)]
        key = f"base_model.model.{module}"
        if f"{key}.lora_A.weight" not in files:
            np.testing.assert_array_equal(*whole)
            continue
        adapted.add(module)
        a, b, m = (files.pop(f"{key}.{kind}") for kind in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
        rank = settings["rank_pattern"].get(module, settings["r"])
        alpha = settings["alpha_pattern"].get(module, settings["lora_alpha"])
        assert a.shape[0] == b.shape[1] == rank
        w, expected = (x.T if name == "gpt2" else x for x in whole)
        v = w + alpha / (rank**0.5 if settings["use_rslora"] else rank) * b @ a
        np.testing.assert_allclose(v * (m / np.linalg.norm(v, axis=1))[:, None], expected, atol=1e-6)
    assert not files and settings["fan_in_fan_out"] == (name == "gpt2")
    ends = tuple(f".{end}" for end in settings["target_modules"])
    assert {module for module in modules_of(family, config) if f".{module}".endswith(ends)} == adapted

    again, back = import_peft(tmp_path / "adapter", plain, parameters(plain))
    assert again.adapter.rank == max([settings["r"], *settings["rank_pattern"].values()])
    ours = arrays_of(lora.merge(again, back)[1])
    for path, x in merged.items():
        if not path.startswith("mtp."):
            np.testing.assert_allclose(ours[path], x, atol=1e-6)


def test_a_fused_adapter_leaves_as_it_came(tmp_path):
    """Parts that still share their A are one adapter of the same rank."""
    plain = dataclasses.replace(PHI3.from_hf(SMALL), dtype="float32")
    config, params = adapted_model(plain, Adapter(rank=2, alpha=4.0, targets=r"attention\..*"))
    base = published(tmp_path, PHI3, SMALL)
    export_peft(tmp_path / "one", config, shaken(params), base)
    export_peft(tmp_path / "two", *import_peft(tmp_path / "one", plain, parameters(plain)), base)
    one, two = (tensors_of_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        few = min(len(one[name].read()), len(two[name].read())) if "o_proj.lora_A" in name else None
        np.testing.assert_allclose(two[name].read()[:few, : one[name].read().shape[1]], one[name].read()[:few], rtol=1e-6)


def test_import_lies_on_the_mesh(tmp_path):
    plain = dataclasses.replace(LLAMA.from_hf(SMALL), dtype="float32")
    config, params = adapted_model(plain, Adapter(rank=2, targets=".*", dora=True))
    params = shaken(params)
    export_peft(tmp_path / "adapter", config, params)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        there = jax.device_put(parameters(plain), shardings(skeleton(plain)[1], mesh))
        again, back = import_peft(tmp_path / "adapter", plain, there)
        wanted = arrays_of(shardings(skeleton(again)[1], mesh))
        for name, x in arrays_of(back).items():
            assert x.sharding == wanted[name], name
            np.testing.assert_allclose(x, arrays_of(params)[name], atol=1e-6)
        export_peft(tmp_path / "again", again, back)
    with pytest.raises(UserError, match="again is not empty, and its adapter_model.safetensors is not that of this export"):
        export_peft(tmp_path / "again", config, params)


@pytest.mark.parametrize(
    "key, value",
    [
        ("peft_type", "LOHA"),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("lora_bias", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("use_qalora", True),
    ],
)
def test_what_ours_cannot_express_is_refused_by_its_key(key, value, tmp_path):
    (tmp_path / SETTINGS).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, key: value}))
    plain = LLAMA.from_hf(SMALL)
    with pytest.raises(UserError, match=f"{key}="):
        import_peft(tmp_path, plain, parameters(plain))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    config, params = adapted_model(PHI3.from_hf(SMALL), Adapter(rank=2))
    export_peft(tmp_path / "adapter", config, params, published(tmp_path, PHI3, SMALL))
    other = LLAMA.from_hf({**SMALL, "hidden_size": 8})
    with pytest.raises(UserError, match=r"no matrix for model.layers.0.self_attn.(qkv|o)_proj \[\d+, \d+\]"):
        import_peft(tmp_path / "adapter", other, parameters(other))
    with pytest.raises(UserError, match="has no adapter to export"):
        export_peft(tmp_path / "none", other, parameters(other))


TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "qwen2": ["k_proj", "up_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "deepseek-v3": ["kv_b_proj", "kv_a_proj_with_mqa", "q_b_proj"],
    "gemma3n": ["q_proj", "linear_left", "per_layer_model_projection", "altup_projections.1"],  # 1 is also a layer
}
DORA = ("phi3", "gpt2")
CASES = {name: (name, dict(target_modules=targets, use_dora=name in DORA)) for name, targets in TARGETS.items()}
CASES["llama-uneven"] = (
    "llama",
    dict(
        target_modules=TARGETS["llama"],
        layers_to_transform=[1],
        use_rslora=True,
        rank_pattern={"o_proj": 6, "layers.1.mlp.down_proj": 2},
        alpha_pattern={"self_attn.q_proj": 3},
    ),
)


@pytest.mark.parametrize("case", all_but(["llama-uneven", "deepseek-v3"], CASES))
def test_peft_and_ours_give_the_same_logits_both_ways(case, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    name, keys = CASES[case]
    base = peers.peer(name)
    base.save_pretrained(tmp_path / "base")
    tokens = peers.batch()[0][:1]
    wrapped = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **keys)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for path, x in wrapped.named_parameters():
            if "lora_B" in path:
                x.copy_(0.2 * torch.randn(x.shape, generator=generator))
            elif "magnitude" in path:
                x.mul_(1 + 0.2 * torch.randn(x.shape, generator=generator))
        theirs, plain = (model(torch.tensor(tokens)).logits.numpy() for model in (wrapped, base))
    wrapped.save_pretrained(tmp_path / "peft")
    source = open_source(tmp_path / "base")
    config, params = import_peft(tmp_path / "peft", source.config, on_first_device(source))
    np.testing.assert_allclose(logits(config, params, tokens), theirs, atol=1e-4, rtol=1e-4)
    assert np.abs(theirs - plain).max() > 0.1

    rng = np.random.default_rng(4)  # as if trained on, so that no two parts of a module share an A
    params = jax.tree.map(lambda x: x, params)
    for _, variable in lora.adapter_only(params).flat_state():
        noise = 0.1 * rng.standard_normal(variable.get_value().shape)
        variable.set_value(variable.get_value() + noise.astype(np.float32))
    export_peft(tmp_path / "ours", config, params, tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    with torch.no_grad():
        theirs = loaded(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, logits(config, params, tokens), atol=1e-4, rtol=1e-4)
