"""What a request can ask of an engine, and how requests come and go."""

import itertools
import threading

import jax
import numpy as np
import pytest
from flax import nnx

import lm
from lm.adapt import lora
from lm.adapt.quantize import dequantize, quantize
from lm.config import Adapter, ModelConfig, Quantization
from lm.convert.peft import export_peft
from lm.errors import UserError
from lm.infer.engine.adapters import Slots
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Closed, Full, Request
from lm.infer.engine.room import Capacity
from lm.infer.engine.step import draw, programs
from lm.infer.engine.weights import KINDS, weights_of
from lm.kernels.cpu.packed import unpack
from lm.model.transformer import skeleton
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

CONFIG = ModelConfig(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_positions=128, dtype="float32"
)
PROMPT = tuple(range(20, 40))


def model_of(seed: int = 0):
    return nnx.merge(skeleton(CONFIG)[0], parameters(CONFIG, scale=4.0, seed=seed))


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def engine(model):
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=64, page=4))
    yield engine
    engine.close()


def events_of(engine, request: Request):
    """Return all events of a request."""
    found, over = [], threading.Event()

    def tell(event):
        found.append(event)
        if event.finish:
            over.set()

    engine.submit(request, tell)
    assert over.wait(60)
    return found


class Even:
    """A grammar of even tokens."""

    def allowed(self):
        return np.arange(CONFIG.vocab_size) % 2 == 0

    def accept(self, token):
        assert token % 2 == 0

    def copy(self):
        return self


class Only(Even):
    """A grammar of one token."""

    def __init__(self, token):
        self.token = token

    def allowed(self):
        return np.arange(CONFIG.vocab_size) == self.token


def test_log_probabilities_are_the_models(engine, model):
    events = events_of(engine, Request(PROMPT, 5, temperature=0, logprobs=3, prompt_logprobs=2))
    tokens = [token for event in events for token in event.tokens]
    logits = np.asarray(jax.jit(model)(np.asarray([[*PROMPT, *tokens]], np.int32))[0], np.float64)
    logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    likely = [one for event in events for one in event.likely]
    for n, one in enumerate(likely):
        at = logps[len(PROMPT) - 1 + n]
        np.testing.assert_allclose(one.chosen, at[tokens[n]], atol=1e-4)
        assert [id for id, _ in one.top] == np.argsort(-at)[:3].tolist()
        np.testing.assert_allclose([p for _, p in one.top], np.sort(at)[::-1][:3], atol=1e-4)
    (prompt,) = [event.prompt for event in events if event.prompt]
    assert prompt[0] is None and len(prompt) == len(PROMPT) and len(likely) == len(tokens) == 5
    np.testing.assert_allclose([one.chosen for one in prompt[1:]], [logps[n, t] for n, t in enumerate(PROMPT[1:])], atol=1e-4)
    assert all(len(one.top) == 2 for one in prompt[1:])


def test_stops_bias_penalties_and_grammars(engine):
    plain = engine.generate(Request(PROMPT, 12, temperature=0))
    stop = plain[4]
    ended = engine.generate(Request(PROMPT, 12, temperature=0, stop_ids=(stop,)))
    assert ended == plain[: plain.index(stop) + 1]
    longer = engine.generate(Request(PROMPT, 12, temperature=0, stop_ids=(stop,), min_new_tokens=8))
    assert stop not in longer[:8] and longer[: len(ended) - 1] == ended[:-1]
    assert engine.generate(Request(PROMPT, 3, temperature=0, logit_bias={7: 1e4})) == [7, 7, 7]
    assert plain[0] not in engine.generate(Request(PROMPT, 6, temperature=0, logit_bias={plain[0]: -1e4}))
    assert len(set(engine.generate(Request(PROMPT, 12, temperature=0, presence_penalty=1e4)))) == 12
    assert len(set(engine.generate(Request(PROMPT, 12, temperature=0, frequency_penalty=1e4)))) == 12
    repeated = engine.generate(Request(PROMPT, 12, temperature=0, repetition_penalty=1e6))
    assert not set(repeated) & set(PROMPT) and len(set(repeated)) == 12
    even = engine.generate(Request(PROMPT, 12, temperature=1.0, grammar=Even()))
    assert all(token % 2 == 0 for token in even)
    only_end = Only(stop)  # a grammar that is over is stronger than min_new_tokens
    assert engine.generate(Request(PROMPT, 12, temperature=0, stop_ids=(stop,), min_new_tokens=8, grammar=only_end)) == [stop]


def test_wrong_requests_are_refused_with_the_name_of_the_setting(engine):
    for wrong in (
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(top_p=0.0),
        dict(top_k=-1),
        dict(min_p=2.0),
        dict(repetition_penalty=0.0),
        dict(logprobs=21),
        dict(logit_bias={96: 1.0}),
        dict(stop_ids=(-1,)),
        dict(adapter="none"),
        dict(max_new_tokens=0),
        dict(max_new_tokens=200),
        dict(prompt=()),
        dict(prompt=(96,)),
    ):
        with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
            engine.submit(Request(**dict(prompt=PROMPT, max_new_tokens=4) | wrong), lambda event: None)


def test_cancelled_late_and_refused_requests_leave_no_blocks(model):
    engine = Engine(model, None, Capacity(rows=1, budget=16, pages=64, page=4, queue=2))
    begun, ended = threading.Event(), {name: threading.Event() for name in ("long", "late", "other")}
    finishes = {}

    def teller(name):
        def tell(event):
            begun.set()
            if event.finish:
                finishes[name] = event.finish
                ended[name].set()

        return tell

    long = engine.submit(Request(PROMPT, 100), teller("long"))
    assert begun.wait(60)
    engine.submit(Request(PROMPT, 100, deadline=0.0), teller("late"))
    assert ended["late"].wait(60)
    other = engine.submit(Request(PROMPT, 100), teller("other"))
    engine.submit(Request(PROMPT, 100), lambda event: None)
    with pytest.raises(Full):
        engine.submit(Request(PROMPT, 100), lambda event: None)
    other.cancel()
    long.cancel()
    assert ended["long"].wait(60) and ended["other"].wait(60)
    assert finishes == {"long": "cancelled", "late": "timeout", "other": "cancelled"}
    engine.close(drain=60)
    stats = engine.stats()
    assert stats.blocks_used == 0 and stats.finished == {"cancelled": 2, "timeout": 1, "length": 1}
    with pytest.raises(Closed):
        engine.submit(Request(PROMPT, 1), lambda event: None)


def test_newer_weights_take_over_between_requests(model):
    engine, newer = Engine(model, None, Capacity(rows=4, budget=16, pages=64, page=4)), model_of(seed=1)
    request = Request(PROMPT, 30, temperature=0)
    found, begun, over = [], threading.Event(), threading.Event()

    def tell(event):
        found.extend(event.tokens)
        begun.set()
        if event.finish:
            over.set()

    engine.submit(request, tell)
    assert begun.wait(60)
    engine.swap(newer)
    assert over.is_set() and found == lm.generate(model, None, [PROMPT], max_new_tokens=30, temperature=0)[0]
    assert engine.generate(request) == lm.generate(newer, None, [PROMPT], max_new_tokens=30, temperature=0)[0]
    engine.close()


def learnt(params: nnx.State) -> nnx.State:
    """The parameters with another B of adapters, which starts at 0."""

    def other(path, x):
        return x.replace(jax.device_put(np.full(x.shape, 0.3, np.float32))) if path[-1] == "lora_b" else x

    return nnx.map_state(other, params)


def test_each_request_has_its_own_adapter(model, tmp_path):
    params = nnx.split(model)[1]
    merged = {}
    for n, name in enumerate(("first", "second")):
        config, adapted = lora.with_adapter(CONFIG, params, Adapter(rank=2 + n, alpha=8.0, targets=r"attention\..*"), seed=n)
        adapted = learnt(adapted)
        export_peft(tmp_path / name, config, adapted)
        plain, weights = lora.merge(config, adapted)
        merged[name] = nnx.merge(skeleton(plain)[0], weights)
    engine = Engine(model, None, Capacity(rows=4, budget=16, pages=64, page=4), slots=Slots(2, 4, ".*"))
    for name in merged:
        engine.load_adapter(name, tmp_path / name)
    with pytest.raises(UserError, match="loaded already"):
        engine.load_adapter("first", tmp_path / "first")
    with pytest.raises(UserError, match="places"):
        engine.load_adapter("third", tmp_path / "first")
    models = {"": model} | merged
    wanted = {name: lm.generate(one, None, [PROMPT], max_new_tokens=12, temperature=0)[0] for name, one in models.items()}
    requests = [Request(PROMPT, 12, temperature=0, adapter=name) for name in (*models, "first")]
    assert engine.generate_all(requests) == [*wanted.values(), wanted["first"]]
    assert len({tuple(row) for row in wanted.values()}) == 3
    norms, adapted = lora.with_adapter(CONFIG, params, Adapter(rank=2, targets=r"attention\..*", dora=True))
    export_peft(tmp_path / "norms", norms, adapted)
    engine.unload_adapter("first")
    with pytest.raises(UserError, match="DoRA"):
        engine.load_adapter("norms", tmp_path / "norms")
    with pytest.raises(UserError, match="no adapter 'first'"):
        engine.generate(requests[1])
    engine.load_adapter("first", tmp_path / "second")
    assert engine.generate(requests[1]) == wanted["second"]
    engine.close()


@pytest.mark.parametrize("is_placed", [False, True])
def test_after_warming_no_step_compiles(is_placed):
    """Weights that were loaded are bound to a device, and then so are the pages that a step returns."""
    params = parameters(CONFIG, scale=4.0)
    params = jax.device_put(params, jax.devices()[0]) if is_placed else params
    engine = Engine(nnx.merge(skeleton(CONFIG)[0], params), None, Capacity(rows=4, budget=16, pages=64, page=4))
    engine.warm(adjusts=True)
    known = len(programs), draw._cache_size()
    engine.generate_all([Request(tuple(range(1, 1 + n)), 9, temperature=t) for n in (1, 5, 30, 17, 40) for t in (0.0, 1.0)])
    for fields in ({"presence_penalty": 1.0}, {"logit_bias": {3: 1.0}, "top_k": 2}, {"logprobs": 2}):
        engine.generate_all([Request(tuple(range(1, 1 + n)), 3, temperature=t, **fields) for n in (1, 5) for t in (0.0, 1.0)])
    assert (len(programs), draw._cache_size()) == known
    engine.close()


@pytest.mark.parametrize(
    "bits, packed", all_but([(0, "int8"), (8, "int8"), (8, "float32"), (4, "int4")], itertools.product((0, 8, 4), KINDS))
)
def test_integers_of_a_model_stay_the_same_unless_others_are_asked_for(model, bits, packed):
    config, params = CONFIG, nnx.split(model)[1]
    if bits:
        config, params = quantize(config, params, Quantization(bits=bits, group=8, targets=".*"))
    weights = weights_of(nnx.merge(skeleton(config)[0], params), packed)
    floats = nnx.merge(skeleton(CONFIG)[0], dequantize(config, params)[1] if bits else params).unstacked()
    kept = bits in (KINDS[packed].bits, 0) or KINDS[packed].bits > 8
    for layer, own in zip(weights.layers[0], floats[0], strict=True):
        found, wanted = (dict(state[0].flat_state()) for state in (layer, own))
        for name in (("attention", "query", "weight"), ("attention", "output", "weight"), ("feed_forward", "down", "weight")):
            matrix = found[name].get_value()
            w_KN = np.asarray(wanted[name].get_value()).reshape(matrix.inputs, -1)
            assert matrix.bits == (bits if bits and kept else KINDS[packed].bits)
            if bits and kept:
                np.testing.assert_array_equal(unpack(matrix), w_KN)
            else:
                limit = {32: 0, 16: 2**-8, 8: 1 / 250, 4: 1 / 13}[matrix.bits]
                assert np.all(np.abs(unpack(matrix) - w_KN) <= limit * np.abs(w_KN).max(0))


@pytest.mark.parametrize("slots", [None, Slots(1, 2, ".*")])
def test_an_owned_model_is_freed_when_its_weights_are_packed(slots):
    request, found = Request(PROMPT, 10, temperature=0.0), []
    for owned in (False, True):
        model = jax.tree.map(lambda x: jax.device_put(np.array(x)), model_of(3))
        engine = Engine(model, None, Capacity(rows=2, budget=16, pages=64, page=4), packed="int8", slots=slots, owned=owned)
        found.append(engine.generate(request))
        freed = [x.is_deleted() for x in jax.tree.leaves(nnx.split(model)[1])]
        assert freed.count(True) >= len(freed) - 2 if owned else not any(freed)  # the scale of the last norm may stay
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("packed", all_but(["float32", "int8", "w8a8"], KINDS))
def test_packed_weights_give_each_request_its_tokens_alone_with_the_same_bits(model, packed):
    engine = Engine(model, None, Capacity(rows=8, budget=16, pages=100, page=4), packed=packed)
    requests = [Request(PROMPT[n:], 10, temperature=0.0, logprobs=0) for n in range(12)]
    together = engine.answers(requests)
    for request, answer in zip(requests, together, strict=True):
        engine.forget()
        assert engine.answers([request]) == [answer]
    assert len({answer.tokens for answer in together}) > 1
    engine.close()


@pytest.mark.parametrize("bits", all_but([8], [0, 8]))
def test_a_models_own_adapter_is_merged_into_packed_weights(model, bits):
    config, params = CONFIG, nnx.split(model)[1]
    if bits:
        config, params = quantize(config, params, Quantization(bits=bits))
    config, params = lora.with_adapter(config, params, Adapter(rank=2, alpha=8.0, targets=r"attention\..*"))
    own = nnx.merge(skeleton(config)[0], learnt(params))
    wanted = lm.generate(own, None, [PROMPT], max_new_tokens=12, temperature=0)[0]
    for options in (dict(packed="float32"), {}):
        engine = Engine(own, None, Capacity(rows=2, budget=32, pages=64, page=4), **options)
        assert engine.generate(Request(PROMPT, 12, temperature=0)) == wanted
        engine.close()
