"""Distillation across tokenizers: spans end where both end, losses are those written down by hand and by a slow twin."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from data.text.sentencepiece_tokenizer import train
from lm.align.cross.objective import objective, shared_divergence, sorted_distance
from lm.align.cross.spans import Aligner, encoded
from lm.align.cross.vocabulary import NOTHING_SHARED, counterparts, shared_tokens
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.train.feed import Feed
from lm.train.step import make_trainer, model_config_of
from tests.lm.align.cross.byte_level import byte_level
from tests.lm.examples import first_state, parameters, tiny_config, trainer_and_state

TEXTS = ["the cat sat on the mat\n", "def add(a, b):\n    return a + b\n", "naïve café, déjà vu ☃\n"]


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    student = train(TEXTS * 9, folder / "tokenizer.model", vocab_size=330, sample_bytes=1 << 16, seed=0, threads=1)
    return student, byte_level(folder / "teacher", TEXTS[:2] * 20 + ["a cat and a mat, sat"] * 9, 300)


def row(tokenizer, *segments: list[int], T: int = 40) -> dict[str, np.ndarray]:
    """One packed row; all tokens but the first of a segment are trained."""
    tokens, ids, weights, positions = (np.zeros(T + 1, np.int32) for _ in range(4))
    at = 0
    for n, segment in enumerate(segments, 1):
        here = slice(at, min(at + len(segment), T + 1))
        size = here.stop - at
        tokens[here], ids[here], positions[here] = segment[:size], n, np.arange(size)
        weights[at + 1 : here.stop] = 1
        at = here.stop
    whole = {"tokens": tokens[:-1], "targets": tokens[1:], "segment_ids": ids[:-1], "positions": positions[:-1]}
    return {name: x[None] for name, x in whole.items()} | {"weights": weights[None, 1:].astype(np.float32)}


def spans_of(batch, b: int = 0) -> list[tuple[list[int], list[int], float]]:
    """(the student's tokens, the teacher's tokens, weight) of each span of a row."""
    T, found = batch["tokens"].shape[1], []
    for t in np.flatnonzero(batch["span_weights"][b]):
        u = batch["teacher_places"][b, t]
        ours = [t, *np.flatnonzero(batch["span_ids"][b] == t)]
        theirs = [u, *np.flatnonzero(batch["teacher_span_ids"][b] == t)]
        found.append(
            (batch["targets"][b, ours].tolist(), batch["teacher_targets"][b, theirs].tolist(), batch["span_weights"][b, t])
        )
    assert set(batch["span_ids"][b]) <= {T, *np.flatnonzero(batch["span_weights"][b])}
    return found


def test_spans_end_where_both_tokenizations_end(tokenizers):
    """Every span is the same bytes for both, no shorter one would be, and together they are all that is predicted."""
    ours, theirs = tokenizers
    texts = ["the cat sat on the café ☃ mat", "def add(a, b):\n    return a + b"]
    segments = [[ours.bos_id, *ours.encode(text), ours.eos_id] for text in texts]
    batch = Aligner(ours, theirs, segments)(row(ours, *segments, T=80))
    spans = spans_of(batch)
    ends = {ours.eos_id: theirs.eos_id}
    read = b""
    for mine, yours, weight in spans:
        assert weight == len(mine)
        if mine[0] in ends:
            assert yours == [ends[mine[0]]]
            continue
        assert ours.decode_bytes(mine) == theirs.decode_bytes(yours)
        read += ours.decode_bytes(mine)
        for i in range(1, len(mine)):
            for j in range(1, len(yours)):
                assert ours.decode_bytes(mine[:i]) != theirs.decode_bytes(yours[:j])
    assert any(len(mine) > 1 for mine, _, _ in spans) and any(len(yours) > 1 for _, yours, _ in spans)
    unpredicted = [theirs.decode_bytes(theirs.encode(text)[:1]) for text in texts]  # it has no begin symbol
    assert sum(map(len, texts)) > len(read.decode()) > sum(map(len, texts)) - 16
    assert all(text.encode().startswith(first) for text, first in zip(texts, unpredicted))
    assert batch["teacher_segment_ids"].max() == 2 and batch["teacher_positions"].max() < len(theirs.encode(texts[1])) + 9
    assert batch["span_weights"].sum() <= batch["weights"].sum()


def test_bytes_that_are_no_text_and_symbols_that_are_spelled(tokenizers):
    ours, theirs = tokenizers
    cut = "é".encode()[:1] + b"x\xff cat"
    tokens = encoded(theirs, cut)
    assert tokens.ends.tolist()[-1] == len(cut) and (np.diff(tokens.ends) >= 0).all()
    assert set(tokens.ends[tokens.ends_whole > 0]) >= {1, 2, 3, 7}
    end, user = ours.controls["<|end|>"], ours.controls["<|user|>"]
    assert counterparts(ours, theirs) == {ours.eos_id: theirs.eos_id}
    ends, spelled = Aligner(ours, theirs, []).translated([user, *ours.encode("<|im_end|>"), end])
    assert theirs.decode_bytes(spelled.ids) == b"<|user|><|im_end|><|end|>" and theirs.eos_id not in spelled.ids
    assert ends[-1] == spelled.ends[-1] == 25


def test_rows_without_room_and_untrained_tokens_lose_their_spans(tokenizers):
    ours, theirs = tokenizers
    segment = [ours.bos_id, *ours.encode("the cat sat on the mat")]
    batch = row(ours, segment, segment)
    whole = Aligner(ours, theirs, [segment])(batch)
    short = Aligner(ours, theirs, [segment], most=9)(batch)
    assert short["teacher_tokens"].shape == (1, 9)
    assert spans_of(whole)[: len(spans_of(short))] == spans_of(short) != spans_of(whole)
    batch["weights"][0, 2:] = 0
    assert sum(weight for *_, weight in spans_of(Aligner(ours, theirs, [segment])(batch))) <= 2


def test_losses_worked_by_hand():
    p, q = jnp.array([0.5, 0.2]), jnp.array([0.25, 0.4])
    log = jnp.log
    forward = 0.5 * np.log(2) + 0.2 * np.log(0.5) - 0.7 + 0.65
    np.testing.assert_allclose(shared_divergence(log(p), log(q), "forward", 0.5), forward, rtol=1e-5)
    reverse = 0.25 * np.log(0.5) + 0.4 * np.log(2) - 0.65 + 0.7
    np.testing.assert_allclose(shared_divergence(log(p), log(q), "reverse", 0.5), reverse, rtol=1e-5)
    m = np.array([0.3, 0.36])  # β = 0.2
    jsd = 0.2 * np.sum(p * np.log(p / m)) + 0.8 * np.sum(q * np.log(q / m))
    np.testing.assert_allclose(shared_divergence(log(p), log(q), "jsd", 0.2), jsd, rtol=1e-5)
    for kind in ("forward", "reverse", "jsd"):
        np.testing.assert_allclose(shared_divergence(log(p), log(p), kind, 0.3), 0, atol=1e-7)
    # 0.1, 0.6, 0.3 and 0.5, 0.5: |0.6 − 0.5| + |0.3 − 0.5| + |0.1 − 0|
    np.testing.assert_allclose(sorted_distance(jnp.array([0.1, 0.6, 0.3]), jnp.array([0.5, 0.5])), 0.4, rtol=1e-6)
    slope = jax.grad(lambda q: sorted_distance(jnp.array([0.5, 0.4]), q))(jnp.array([0.1, 0.6, 0.3]))
    np.testing.assert_array_equal(slope, [1, 1, -1])


def distilling(vocab_size: int, **distill):
    config = tiny_config(num_layers=1, vocab_size=vocab_size)
    config.accumulate = 1
    defaults = dict(
        teacher="", kind="logits", divergence="forward", beta=0.5, mix=1.0, temperature=1.0, across="gold", unshared=1.0
    )
    config.distill = ml_collections.ConfigDict(defaults | distill)
    return config


def slow_twin(logits, their_logits, batch, shared, d) -> float:
    """The objective, one span after the other in NumPy."""

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    q_BTV, p_BUW = softmax(logits / d.temperature), softmax(their_logits / d.temperature)
    M = len(shared.student_M)
    total, T = 0.0, logits.shape[1]
    for b in range(len(logits)):
        for t in np.flatnonzero(batch["span_weights"][b]):
            u = batch["teacher_places"][b, t]
            q, p = q_BTV[b, t].copy(), p_BUW[b, u].copy()
            for i in np.flatnonzero(batch["span_ids"][b] == t):
                q *= q_BTV[b, i, batch["targets"][b, i]]
            for i in np.flatnonzero(batch["teacher_span_ids"][b] == t):
                p *= p_BUW[b, i, batch["teacher_targets"][b, i]]
            a, c = p[shared.teacher_M], q[shared.student_M]
            if d.divergence == "jsd":
                m = d.beta * a + (1 - d.beta) * c
                value = d.beta * np.sum(a * np.log(a / m)) + (1 - d.beta) * np.sum(c * np.log(c / m))
            else:
                value = np.sum(a * np.log(a / c) - a + c)
            rest_p = sorted(np.delete(p, shared.teacher_M), reverse=True)
            rest_q = sorted(np.delete(q, shared.student_M), reverse=True)
            size = max(len(rest_p), len(rest_q))
            distance = np.abs(np.pad(rest_p, (0, size - len(rest_p))) - np.pad(rest_q, (0, size - len(rest_q)))).sum()
            weight = batch["span_weights"][b, t]
            total += weight * d.mix * (d.temperature**2 * value + (d.unshared if M else 1.0) * d.temperature * distance)
        nll = -np.log(softmax(logits[b])[np.arange(T), batch["targets"][b]])
        total += (1 - d.mix) * np.sum(batch["weights"][b] * nll)
    return total


@pytest.mark.parametrize(
    "distill", [dict(), dict(divergence="jsd", beta=0.2, temperature=2.0, mix=0.7, unshared=0.3), dict(across="uld", mix=0.5)]
)
def test_the_objective_is_that_of_a_slow_twin(tokenizers, distill):
    ours, theirs = tokenizers
    config = distilling(336, **distill)
    their_config = model_config_of(tiny_config(num_layers=1, vocab_size=304, embed_dim=48, logit_softcap=8.0))
    graph, frozen = skeleton(their_config)[0], parameters(their_config, seed=7, scale=4.0)
    shared = shared_tokens(ours, theirs) if config.distill.across == "gold" else NOTHING_SHARED
    segments = [[ours.bos_id, *ours.encode(text), ours.eos_id] for text in TEXTS]
    rows = [row(ours, segments[0], segments[1]), row(ours, segments[2])]
    batch = Aligner(ours, theirs, segments)({name: np.concatenate([one[name] for one in rows]) for name in rows[0]})
    mine = skeleton(model_config_of(config))[0]
    built = objective(config, graph, shared)

    def both(params, batch):
        model, teacher = nnx.merge(mine, params), nnx.merge(graph, frozen)
        names = ("tokens", "segment_ids", "positions")
        x = model.hidden(Inputs(*(batch[name] for name in names))).x_BTD
        y = teacher.hidden(Inputs(*(batch[f"teacher_{name}"] for name in names))).x_BTD
        their_logits = 8.0 * jnp.tanh(teacher.to_head(y) @ teacher.head_VD.T / 8.0)
        return built.loss(model, batch, frozen, train=False), model.to_head(x) @ model.head_VD.T, their_logits

    (total, sums), logits, their_logits = jax.jit(both)(parameters(model_config_of(config), scale=2.0), batch)
    expected = slow_twin(np.float64(logits), np.float64(their_logits), batch, shared, config.distill)
    np.testing.assert_allclose(total, expected, rtol=2e-5)
    in_spans, weight = sums.metrics["aligned"]
    assert weight == batch["weights"].sum() > in_spans > 0.7 * weight


def test_on_a_mesh_as_on_one_device(tokenizers):
    ours, theirs = tokenizers
    config = distilling(336, mix=0.5)
    their_config = model_config_of(tiny_config(num_layers=1, vocab_size=304, embed_dim=48, num_heads=4))
    segments = [[ours.bos_id, *ours.encode(text), ours.eos_id] for text in TEXTS]
    rows = [row(ours, segments[n % 3], segments[(n + 1) % 3]) for n in range(8)]
    batch = Aligner(ours, theirs, segments)({name: np.concatenate([one[name] for one in rows]) for name in rows[0]})
    found = []
    for mesh in (make_mesh({"data": 1}, jax.devices()[:1]), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        with jax.set_mesh(mesh):
            graph = skeleton(their_config)[0]
            frozen = jax.device_put(parameters(their_config, seed=7, scale=4.0), shardings(skeleton(their_config)[1], mesh))
            trainer = make_trainer(config, objective(config, graph, shared_tokens(ours, theirs)))
            state = first_state(trainer, config, mesh)
            arrays = Feed(types.SimpleNamespace(batch_size=8), mesh).to_devices(batch)
            _, metrics = jax.jit(trainer.step)(state, arrays, frozen)
            found.append({name: float(x) for name, x in metrics.items()})
    assert found[0].keys() == found[1].keys()
    for name, x in found[0].items():
        np.testing.assert_allclose(found[1][name], x, rtol=1e-4, err_msg=name)


def test_a_few_steps_bring_the_student_nearer(tokenizers):
    ours, theirs = tokenizers
    config = distilling(336)
    config.steps, config.sequence_length = 30, 40
    config.optimizer.update(learning_rate=1e-2, warmup=2, weight_decay=0.0)
    their_config = model_config_of(tiny_config(num_layers=1, vocab_size=304, embed_dim=48))
    graph, frozen = skeleton(their_config)[0], parameters(their_config, seed=7, scale=10.0)
    trainer = make_trainer(config, objective(config, graph, shared_tokens(ours, theirs)))
    state, step = trainer_and_state(config)[1], jax.jit(trainer.step)
    segments = [[ours.bos_id, *ours.encode(text), ours.eos_id] for text in TEXTS]
    rows = [row(ours, segments[n % 3], segments[(n + 1) % 3]) for n in range(8)]
    batch = Aligner(ours, theirs, segments)({name: np.concatenate([one[name] for one in rows]) for name in rows[0]})
    curve = []
    for _ in range(config.steps):
        state, metrics = step(state, batch, frozen)
        curve.append({name: float(x) for name, x in metrics.items()})
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"] and curve[-1]["shared"] < 0.5 * curve[0]["shared"]
    assert curve[-1]["agreement"] > curve[0]["agreement"] and all(np.isfinite(list(one.values())).all() for one in curve)
