"""Reward models as sequence classifiers, in and out; value heads, which stay here; adapters of either."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lm.adapt.lora import with_adapter
from lm.adapt.rebuild import arrays_of, combined, with_score_head
from lm.config import Adapter, ModelConfig
from lm.convert.files import tensors_of
from lm.convert.peft import SETTINGS
from lm.convert.published import open_published
from lm.convert.to_published import padding, to_adapter, to_published
from lm.convert.to_workdir import adapter_to_workdir, write_workdir
from lm.errors import UserError
from lm.infer.load import load_model
from lm.model import sizing
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from tests.lm.convert import peers
from tests.lm.convert.handmade import EMBEDDING, HEAD, HF, D, V, as_contents, contents, imported, llama, written

CLASSIFIER = {**HF, "architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "pad_token_id": 0}
SIZES = {"vocab_size": V, "num_layers": 2, "embed_dim": D, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 40}
OFTEN = ("gpt2", "gemma3")  # whose names differ from those of the others
FAMILIES = "llama mistral qwen2 qwen3 phi3 mixtral qwen3-moe gemma2 olmo2 deepseek-v2 deepseek-v3".split()


@pytest.fixture(scope="module", autouse=True)
def quick():
    """There is more to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def classifier(labels: int = 1, **more) -> dict[str, np.ndarray]:
    """Tensors of a small Llama that classifies."""
    tensors = {name: x for name, x in llama(np.float32).items() if name != HEAD}
    return tensors | {"score.weight": np.random.default_rng(1).standard_normal((labels, D)).astype(np.float32)} | more


def a_model(kind: str, tied: bool = False, **keys) -> tuple[ModelConfig, nnx.State]:
    """A small model of ours, its numbers made up."""
    config = ModelConfig(**{**SIZES, **keys}, dtype="float32", tie_embeddings=tied, score_head=kind)
    rng = np.random.default_rng(0)

    def drawn(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(x.shape).astype(np.float32)
        return jax.device_put(1 + 0.1 * noise if name.endswith("scale") else 0.3 * noise)

    return config, combined(config, {name: drawn(name, x) for name, x in arrays_of(skeleton(config)[1]).items()})


def a_run(workdir: Path, config: ModelConfig, params: nnx.State) -> Path:
    workdir.mkdir()
    write_workdir(workdir, config, params)
    return workdir


def scores(model, tokens: np.ndarray, real: np.ndarray | None = None, positions=None) -> np.ndarray:
    """Float32 [B, T]."""
    segments = None if real is None else real.astype(np.int32)
    return np.asarray(jax.jit(lambda m: m.scores(m.hidden(Inputs(tokens, segments, positions)).x_BTD))(model))


TOKENS = np.random.default_rng(2).integers(4, V, (3, 12))


@pytest.mark.parametrize("name", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)])
def test_every_family_scores_as_its_classifier_and_leaves_as_it_came(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base, config = peers.peer(name), peers.peer_config(name)
    config.num_labels, config.pad_token_id = 1, 0
    theirs = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()
    getattr(theirs, theirs.base_model_prefix).load_state_dict(base.base_model.state_dict())
    theirs.score.weight.data = torch.randn(1, theirs.score.in_features, generator=torch.Generator().manual_seed(3))
    theirs.save_pretrained(tmp_path / "a")

    workdir = imported(tmp_path / "a", tmp_path / "w")
    tokens, real, positions = peers.batch()
    with torch.no_grad():
        arguments = {"attention_mask": torch.tensor(real).long(), "position_ids": torch.tensor(positions)}
        expected = theirs(torch.tensor(tokens), **arguments).logits.numpy()[:, 0]
    found = scores(load_model(workdir), tokens, real, positions)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found[:, -1], expected, rtol=0, atol=1e-4)

    to_published(workdir, tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    told = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "ab"]
    for key in ("architectures", "id2label", "label2id", "pad_token_id", "model_type"):
        assert told[0][key] == told[1][key], key
    _, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_reward_model_of_ours_is_a_classifier_in_transformers(tied, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = a_model("reward", tied)
    to_published(a_run(tmp_path / "w", config, params), tmp_path / "b")
    assert "lm_head.weight" not in tensors_of(tmp_path / "b")
    peer, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(report.values()) and peer.num_labels == 1 and type(peer).__name__ == "LlamaForSequenceClassification"
    with torch.no_grad():
        expected = [peer(torch.tensor(row[None])).logits.item() for row in TOKENS]
    found = scores(load_model(tmp_path / "w"), TOKENS)
    np.testing.assert_allclose(found[:, -1], expected, rtol=0, atol=1e-4)
    again = load_model(tmp_path / "b")
    assert again.config.score_head == "reward" and again.config.tie_embeddings
    np.testing.assert_array_equal(scores(again, TOKENS), found)


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_policy_leaves_without_its_value_head(tied, tmp_path):
    config, params = a_model("value", tied)
    to_published(a_run(tmp_path / "w", config, params), tmp_path / "b")
    to_published(a_run(tmp_path / "v", *with_score_head(config, params, "none")), tmp_path / "c")
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
    assert "score.weight" not in contents(tmp_path / "b")
    told = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in "bc"]
    assert told[0] == told[1] and told[0]["architectures"] == ["LlamaForCausalLM"]


def test_modules_that_look_ahead_stay_here_too(tmp_path):
    mla = {"kv_rank": 8, "rope_head_dim": 4, "value_head_dim": 4}
    config, params = a_model("reward", mla=mla, mtp_depth=1, num_kv_heads=4)
    to_published(a_run(tmp_path / "w", config, params), tmp_path / "b")
    told = json.loads((tmp_path / "b" / "config.json").read_text())
    assert told["architectures"] == ["DeepseekV3ForSequenceClassification"] and told["num_nextn_predict_layers"] == 0
    assert not any("layers.2." in name or "lm_head" in name for name in contents(tmp_path / "b"))
    again = load_model(tmp_path / "b")
    assert again.config.mtp_depth == 0
    np.testing.assert_array_equal(scores(again, TOKENS), scores(load_model(tmp_path / "w"), TOKENS))


def test_a_score_is_counted_and_learns_beside_an_adapter():
    config = ModelConfig(**SIZES, score_head="reward", adapter={"rank": 2})
    counts = sizing.parameters(config)
    assert (counts["total"]["score"], counts["trained"]["score"]) == (D, D)
    assert (counts["total"]["head"], counts["trained"]["head"]) == (V * D, 0)


def test_an_import_has_no_head_of_its_own(tmp_path):
    tensors = classifier()
    workdir = imported(written(tmp_path / "a", tensors, CLASSIFIER), tmp_path / "w", fsdp=8)
    arrays = arrays_of(nnx.state(load_model(workdir)))
    assert "head" not in arrays
    np.testing.assert_array_equal(arrays["score"], tensors["score.weight"][0])
    to_published(workdir, tmp_path / "b")
    assert contents(tmp_path / "b") == as_contents(tensors)


def test_a_head_that_lies_beside_a_classifier_has_no_meaning(tmp_path):
    tensors = classifier()
    folder = written(tmp_path / "a", tensors | {HEAD: tensors[EMBEDDING] + 1}, CLASSIFIER)
    np.testing.assert_array_equal(arrays_of(nnx.state(load_model(folder)))["score"], tensors["score.weight"][0])


@pytest.mark.parametrize(
    "labels, more, extra, message",
    [
        (2, {"id2label": {"0": "a", "1": "b"}}, {}, "classifier with 2 labels: only one label"),
        (3, {}, {}, r"1 of another shape \(score.weight \[3, 32\] instead of \[1, 32\]\)"),
        (1, {}, {"score.bias": np.zeros(1, np.float32)}, r"1 left over \(score.bias\)"),
        (1, {"architectures": ["LlamaForCausalLM"]}, {}, r"1 missing \(lm_head.weight\); 1 left over \(score.weight\)"),
    ],
)
def test_what_is_no_reward_model_is_refused(labels, more, extra, message, tmp_path):
    folder = written(tmp_path / "a", classifier(labels, **extra), {**CLASSIFIER, **more})
    with pytest.raises(UserError, match=message):
        open_published(folder)


def test_a_checkpoint_that_names_no_class_is_told_by_its_score(tmp_path):
    hf = {key: value for key, value in CLASSIFIER.items() if key not in ("architectures", "id2label")}
    assert open_published(written(tmp_path / "a", classifier(), hf)).config.score_head == "reward"
    assert open_published(written(tmp_path / "b", llama(), HF)).config.score_head == "none"


def test_the_token_that_pads_ends_no_text_if_there_is_a_choice():
    assert padding({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}) == 0
    assert padding({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": None}) == 2
    assert padding({"eos_token_id": 1}) == 1
    assert padding({}) is None


def adapted(config: ModelConfig, params: nnx.State) -> tuple[ModelConfig, nnx.State]:
    """With an adapter and a reward's score that have learnt something."""
    config, params = with_adapter(config, params, Adapter(rank=2, targets=r"attention\.(query|value)"))
    config, params = with_score_head(config, params, "reward")
    rng = np.random.default_rng(4)

    def learnt(name: str, x: jax.Array) -> jax.Array:
        return x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) if "lora" in name or name == "score" else x

    return config, combined(config, {name: learnt(name, x) for name, x in arrays_of(params).items()})


def test_an_adapter_takes_the_score_along(tmp_path):
    base = a_model("none")
    config, params = adapted(*base)
    expected = scores(nnx.merge(skeleton(config)[0], params), TOKENS)
    to_adapter(a_run(tmp_path / "w", config, params), tmp_path / "peft")
    settings = json.loads((tmp_path / "peft" / SETTINGS).read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["modules_to_save"] == ["score"]

    start = a_run(tmp_path / "start", *base)
    adapter_to_workdir(tmp_path / "peft", str(start), tmp_path / "again", make_mesh({}, jax.devices()[:1]))
    again = load_model(tmp_path / "again")
    assert again.config.score_head == "reward" and again.config.adapter.rank == 2
    np.testing.assert_allclose(scores(again, TOKENS), expected, rtol=0, atol=1e-5)
    to_published(tmp_path / "again", tmp_path / "merged", merge=True)
    np.testing.assert_allclose(scores(load_model(tmp_path / "merged"), TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_peft_reads_the_adapter_of_a_reward_model_and_we_theirs(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = a_model("none")
    config, params = adapted(*base)
    expected = scores(nnx.merge(skeleton(config)[0], params), TOKENS)[:, -1]
    to_published(a_run(tmp_path / "start", *base), tmp_path / "base")
    to_adapter(a_run(tmp_path / "w", config, params), tmp_path / "peft", base=str(tmp_path / "base"))
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model = peft.PeftModel.from_pretrained(peer, tmp_path / "peft").eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor(row[None])).logits.item() for row in TOKENS]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

    model.save_pretrained(tmp_path / "theirs")
    adapter_to_workdir(tmp_path / "theirs", str(tmp_path / "base"), tmp_path / "again", make_mesh({}, jax.devices()[:1]))
    np.testing.assert_allclose(scores(load_model(tmp_path / "again"), TOKENS)[:, -1], expected, rtol=0, atol=1e-4)
