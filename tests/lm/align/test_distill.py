"""Distillation: the student nears its teacher, whatever the teacher's family and width, and nothing else can teach it."""

import re

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx

from data.text.sentencepiece_tokenizer import train
from lm.align.cross.vocabulary import difference
from lm.align.distill import check_teacher, objective, open_teacher
from lm.align.settings import check_method
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.kernels.divergence import Distillation
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import packed_batch, parameters, tiny_config, trainer_and_state
from tests.lm.kernels.twins import divergence_reference


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Of another width, depth and family, with rows to spare that the tokenizer does not fill.
OTHER = dict(vocab_size=72, num_layers=1, embed_dim=48, num_heads=4, num_kv_heads=4, logit_softcap=8.0, tie_embeddings=True)


def distilling(model: dict | None = None, **distill):
    config = tiny_config(**{"num_layers": 1} | (model or {}))
    defaults = dict(
        teacher="", kind="logits", divergence="forward", beta=0.5, mix=1.0, temperature=1.0, across="gold", unshared=1.0
    )
    config.accumulate = 1
    config.distill = ml_collections.ConfigDict(defaults | distill)
    return config


def teacher_of(model: dict, scale: float = 4.0):
    """(graph, parameters) of a model with opinions: its matrices are larger than those of a fresh one."""
    model_config = model_config_of(tiny_config(**model))
    return skeleton(model_config)[0], parameters(model_config, seed=7, scale=scale)


def test_as_the_whole_logits_of_both_say():
    config = distilling(divergence="jsd", beta=0.2, temperature=2.0, mix=0.7)
    graph, frozen = teacher_of(OTHER)
    batch, student = packed_batch(config, seed=0), skeleton(model_config_of(config))[0]
    distilled = objective(config, graph)

    def both(params, batch, frozen):
        model, teacher = nnx.merge(student, params), nnx.merge(graph, frozen)
        read = [batch[name] for name in ("tokens", "segment_ids", "positions")]
        d = config.distill
        expected = divergence_reference(
            model.hidden(Inputs(*read)).x_BTD,
            model.head_VD,
            teacher.hidden(Inputs(*read)).x_BTD,
            teacher.head_VD[:64],
            batch["targets"],
            batch["weights"],
            Distillation(d.divergence, d.beta, d.mix, d.temperature, teacher_softcap=8.0),
        )
        return distilled.loss(model, batch, frozen, train=False), expected

    (total, sums), expected = jax.jit(both)(parameters(model_config_of(config), scale=2.0), batch, frozen)
    np.testing.assert_allclose(total, expected.objective, rtol=1e-5)
    assert distilled.weight(batch) == batch["weights"].sum() > 0
    named = {"loss": "objective"} | {name: name for name in ("kl", "nll", "entropy", "agreement")}
    for name, field in named.items():
        np.testing.assert_allclose(sums.metrics[name], (getattr(expected, field), batch["weights"].sum()), rtol=1e-5)


def test_from_itself_there_is_nothing_to_learn():
    config = distilling()
    graph, params = teacher_of(dict(num_layers=1))
    total, sums = jax.jit(lambda p, batch: objective(config, graph).loss(nnx.merge(graph, p), batch, p, train=False))(
        params, packed_batch(config, seed=0)
    )
    agreed, weight = sums.metrics["agreement"]
    assert agreed == weight > 0
    assert abs(total) < 1e-5 * weight


def test_a_few_steps_bring_the_student_nearer():
    config = distilling()
    config.steps = 60
    config.optimizer.update(learning_rate=1e-2, warmup=2, weight_decay=0.0)
    graph, frozen = teacher_of(OTHER, scale=10.0)
    trainer = make_trainer(config, objective(config, graph))
    state = trainer_and_state(config)[1]
    step = jax.jit(trainer.step)
    curve = []
    for n in range(config.steps):
        state, metrics = step(state, packed_batch(config, seed=n), frozen)
        curve.append({name: float(value) for name, value in metrics.items()})
    first, last = curve[0], curve[-1]
    assert last["kl"] < 0.6 * first["kl"] and last["loss"] < 0.6 * first["loss"]
    assert last["agreement"] > first["agreement"] + 0.15
    unseen = packed_batch(config, seed=99)
    sums = jax.jit(trainer.evaluate)(state.params, unseen, frozen)
    assert sums["metrics"]["kl"][0] / sums["weight"] < 0.7 * first["kl"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """(ours, one of other text, a copy of ours), each in a folder of its own."""
    folder = tmp_path_factory.mktemp("tokenizers")
    texts = ["the cat sat on the mat\n"] * 9, ["def add(a, b): return a + b\n"] * 9, ["the cat sat on the mat\n"] * 9
    return [
        train(text, folder / str(n) / "tokenizer.model", vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)
        for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizers):
    """The workdir of a run."""
    workdir = tmp_path_factory.mktemp("teacher")
    model_config = model_config_of(tiny_config(**OTHER | {"vocab_size": 320}))
    write_workdir(workdir, model_config, parameters(model_config, seed=7))
    tokenizers[0].save(workdir)
    return workdir, model_config


def test_a_teacher_is_read_onto_the_mesh(teacher, tokenizers):
    workdir, model_config = teacher
    config = distilling({"vocab_size": 304}, teacher=str(workdir))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        graph, params = open_teacher(config, tokenizers[2], mesh)
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(parameters(model_config, seed=7)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert {shard.data.shape for shard in params["embedding"].get_value().addressable_shards} == {(160, 24)}
        config.dtype = "bfloat16"
        assert nnx.merge(*open_teacher(config, tokenizers[0], mesh)).config.dtype == "bfloat16"


def test_who_cannot_teach_is_told_why(teacher, tokenizers):
    config, mesh = distilling({"vocab_size": 304}), make_mesh({"data": 1}, jax.devices()[:1])
    config.distill.teacher = str(teacher[0])
    config.model.vocab_size = 280
    with pytest.raises(UserError, match="320 rows of vocabulary and the student 280"):
        open_teacher(config, tokenizers[0], mesh)
    config.model.vocab_size = 304
    with pytest.raises(UserError, match="distill.teacher=.*mesh.fsdp=5 does not divide model.embed_dim=48"):
        open_teacher(config, tokenizers[0], make_mesh({"fsdp": 5}, jax.devices()[:5]))


def test_a_tokenizer_that_is_the_same_but_in_name(tokenizers):
    ours, other, copy = tokenizers
    copy.fingerprint = "another"
    assert difference(ours, copy) is None
    assert re.match(r"token \d+ is b'.+' in its tokenizer and b'.+' in the student's", difference(ours, other))
    copy.set_bytes([ours.decode_bytes([i]) for i in range(ours.vocab_size - 1)])
    copy.vocab_size -= 1
    assert re.match("its tokenizer has .* tokens and the student's", difference(ours, copy))
    assert difference(copy, ours) is None  # the teacher's may have more


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(kind="online"), "distill.kind"),
        (dict(divergence="hellinger"), "forward, reverse, jsd"),
        (dict(mix=1.1), "distill.mix"),
        (dict(temperature=0.0), "distill.temperature"),
        (dict(divergence="jsd", beta=1.0), "distill.beta"),
        (dict(), "distill.teacher is not set"),
        (dict(teacher="nowhere"), "nowhere"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        check_method(ml_collections.ConfigDict({"method": "distill", "distill": distilling(**settings).distill}))
        check_teacher(distilling(**settings).distill)
