"""The sampler against plain repeated forward passes, and its choices on logits made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from data.text.sentencepiece_tokenizer import train
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer import call, decode, sampler
from lm.infer.call import Layout
from lm.infer.decode import Sampling, sample
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.lm.weights import drawn as parameters
from tests.slow import all_but

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}

# A few more rows than the tokenizer has pieces: those must never be drawn.
CONFIG = ModelConfig(vocab_size=400, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, dtype="float32")
PROMPTS = [[5], [30, 40, 50], list(range(60, 75)), [2, 300]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    text = ["def add(a, b):\n    return a + b\n", "Größe → 7 µm, 深い学習\n", "the cat and the hat sat on that mat\n"]
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    return train(text * 3, path, vocab_size=320, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.fixture(scope="module")
def model():
    """Random, but with opinions: its matrices are four times as large as those of a fresh model."""
    return nnx.merge(skeleton(CONFIG)[0], parameters(CONFIG, scale=4.0))


def with_ids_swapped(model, a, b):
    """The same model, which says b where it would have said a."""
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda p: p, params)
    head = params["head"].get_value()
    params["head"].set_value(head.at[jnp.asarray([a, b])].set(head[jnp.asarray([b, a])]))
    return nnx.merge(graph, params)


def greedy_without_cache(model, tokenizer, prompts, count):
    forward = jax.jit(lambda tokens: model(tokens))
    rows = []
    for prompt in prompts:
        row = list(prompt)
        while len(row) < len(prompt) + count:
            padded = np.zeros((1, 40), np.int32)  # what comes later has no effect
            padded[0, : len(row)] = row
            row.append(int(np.argmax(forward(padded)[0, len(row) - 1, : tokenizer.vocab_size])))
        rows.append(row[len(prompt) :])
    return rows


def test_greedy_is_repeated_forward_passes(model, tokenizer):
    plain = greedy_without_cache(model, tokenizer, PROMPTS, 12)
    assert tokenizer.eos_id not in sum(plain, [])
    assert len({token for row in plain for token in row}) > 10  # it says something
    together = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    assert together == plain
    for prompt, row in zip(PROMPTS, plain, strict=True):
        assert lm.generate(model, tokenizer, [prompt], max_new_tokens=12, temperature=0) == [row]
    assert lm.generate(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=3.0, top_k=1) == plain


def test_a_row_ends_before_its_end_token_and_the_others_go_on(model, tokenizer):
    plain = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    stop = plain[1][4]
    ending = with_ids_swapped(model, stop, tokenizer.eos_id)
    expected = [row[: row.index(stop)] if stop in row else row for row in plain]
    assert len(expected[1]) <= 4 and max(map(len, expected)) == 12
    assert lm.generate(ending, tokenizer, PROMPTS, max_new_tokens=12, temperature=0) == expected
    # alone, where the loop ends with the row, and streamed
    assert lm.generate(ending, tokenizer, PROMPTS[1:2], max_new_tokens=12, temperature=0) == expected[1:2]
    streamed = lm.generate(ending, tokenizer, PROMPTS[1:2], max_new_tokens=12, temperature=0, stream=lambda text: None)
    assert streamed == expected[1:2]


@pytest.mark.parametrize("seed", all_but([0], [0, 1, 2]))
@pytest.mark.parametrize("update", [0.0, 1e9], ids=["token by token", "in growing pieces"])
def test_streaming_gives_the_text_of_the_compiled_loop(model, tokenizer, seed, update, monkeypatch):
    # A random model draws many bytes that are no UTF-8: what is shown must never have to be taken back.
    monkeypatch.setattr(sampler, "UPDATE", update)
    options = dict(max_new_tokens=30, temperature=1.0, top_p=0.95, seed=seed)
    pieces = []
    streamed = lm.generate(model, tokenizer, ["the cat"], stream=pieces.append, **options)
    assert streamed == lm.generate(model, tokenizer, ["the cat"], **options)
    assert "".join(pieces) == streamed[0]
    assert (len(pieces) > 10 if update == 0 else 1 < len(pieces) < 8) and all(pieces)


def one_after_the_other(model, row):
    """The same model, which says the ids of `row` (all different) in this order and knows nothing else."""
    graph, params = nnx.split(model)
    params = jax.tree.map(jnp.zeros_like, params)
    table = np.random.default_rng(0).normal(size=(CONFIG.vocab_size, CONFIG.embed_dim)).astype(np.float32)
    head = np.zeros_like(table)
    head[row[1:]] = table[row[:-1]]
    params["embedding"].set_value(jax.device_put(table))
    params["head"].set_value(jax.device_put(head))
    params["norm"]["scale"].set_value(jnp.ones(CONFIG.embed_dim))
    return nnx.merge(graph, params)


@pytest.mark.parametrize("update", [0.0, 1e9], ids=["token by token", "in growing pieces"])
def test_streaming_waits_for_all_bytes_of_a_character(model, tokenizer, update, monkeypatch):
    monkeypatch.setattr(sampler, "UPDATE", update)
    said = ["a", "é", "\u6df1", "🙂", "\ufffd"]  # the last one also stands for invalid bytes
    byte = {tokenizer.decode_bytes([i]): i for i in reversed(range(tokenizer.vocab_size))}
    first, *row = [byte[bytes([b])] for b in "".join([">", *said]).encode()]
    assert len({first, *row}) == len(row) + 1
    speaker, pieces = one_after_the_other(model, [first, *row]), []
    options = dict(temperature=0, stream=pieces.append)
    assert lm.generate(speaker, tokenizer, [[first]], max_new_tokens=len(row), **options) == [row]
    assert "".join(pieces) == "".join(said)
    assert pieces == said if update == 0 else all(piece in "".join(said) for piece in pieces)
    pieces.clear()
    lm.generate(speaker, tokenizer, [[first]], max_new_tokens=len(row) - 5, **options)  # two of the four bytes of 🙂
    assert "".join(pieces) == "aé\u6df1\ufffd"


def test_weights_in_bfloat16_decode_in_float32(model, tokenizer):
    """`decoding_weights` casts them, which is exact."""
    graph, params = nnx.split(model)
    stored = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    low, same = nnx.merge(graph, stored), nnx.merge(graph, jax.tree.map(lambda p: p.astype(jnp.float32), stored))
    options = dict(max_new_tokens=20, temperature=1.0, seed=5)
    expected = lm.generate(same, tokenizer, ["the cat"], **options)
    assert lm.generate(low, tokenizer, ["the cat"], **options) == expected
    assert lm.generate(low, tokenizer, ["the cat"], stream=lambda text: None, **options) == expected
    unrolled = skeleton(dataclasses.replace(CONFIG, scan_layers=False))[0]
    layers = decode.decoding_weights(unrolled, stored)[1]
    assert {str(x.dtype) for x in jax.tree.leaves(layers) if x.ndim > 1} == {"float32"}


def test_a_chat_is_the_answer_to_one_conversation(model, tokenizer):
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "the cat"}]
    options = dict(max_new_tokens=10, temperature=1.0, seed=2)
    pieces = []
    answer = lm.chat(model, tokenizer, messages, stream=pieces.append, **options)
    assert answer == {"role": "assistant", "content": lm.generate(model, tokenizer, [messages], **options)[0]}
    assert "".join(pieces) == answer["content"] != ""
    for wrong in ("the cat", [], [messages], ["the cat"], {"role": "user", "content": "a"}):
        with pytest.raises(UserError, match="messages of one conversation"):
            lm.chat(model, tokenizer, wrong)


def test_a_seed_is_a_text(model, tokenizer):
    first, again, other = (lm.generate(model, tokenizer, ["the"], max_new_tokens=20, seed=seed) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.slow
def test_rows_draw_alike_whoever_is_beside_them(model, tokenizer):
    options = dict(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=3)
    together = lm.generate(model, tokenizer, PROMPTS, **options)
    beside_others = lm.generate(model, tokenizer, [PROMPTS[0], PROMPTS[1], [9], list(range(100, 140))], **options)
    assert beside_others[:2] == together[:2]
    assert lm.generate(model, tokenizer, PROMPTS[:1], **options) == together[:1]
    twins = lm.generate(model, tokenizer, [[5], [5]], **options)
    assert twins[0] != twins[1]  # rows with one prompt differ in their draws


def test_fewer_tokens_are_a_prefix(model, tokenizer):
    long = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=12, seed=1)
    short = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=1, seed=1)
    assert short == [row[:1] for row in long]


@pytest.mark.parametrize("sizes", all_but([{}], [{}, EIGHT]), ids=["one device", "eight"])
def test_what_all_prompts_begin_with_is_read_once(model, sizes):
    first = list(range(100, 140))
    sampling = Sampling(10, stop_ids=(1,), vocab_size=320, seed=4)
    prompts = [PROMPTS[1], PROMPTS[2], PROMPTS[3], PROMPTS[1][:2]]
    whole = sampler.draw(model, [first + prompt for prompt in prompts], sampling, Layout(2))
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        there = nnx.merge(graph, jax.device_put(params, shardings(skeleton(CONFIG)[1], mesh)))
        apart = sampler.draw(there, prompts, sampling, Layout(2), prefix=first)
    assert apart.tokens == whole.tokens and apart.ended == whole.ended
    for one, other in zip(apart.logps, whole.logps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "unrolled"), all_but([({}, 48)], [({}, 48), ({}, 0), (EIGHT, 48)]), ids=["one", "scanned", "eight"]
)
def test_rows_that_have_enough_leave_the_others_as_they_are(model, sizes, unrolled, monkeypatch):
    """Of 20 rows 3 go on, beside one that fills the batch; slots are added as they are needed. One row ends by itself."""
    monkeypatch.setattr(call, "UNROLLED", unrolled)
    picked = []
    monkeypatch.setattr(decode, "resize", lambda *a, resize=decode.resize: picked.append(a[2] is not None) or resize(*a))
    sampling, prefix = Sampling(41, stop_ids=(1,), vocab_size=320, seed=4), list(range(100, 140))
    prompts = [PROMPTS[n % 4] + [200 + n] for n in range(20)]
    free = sampler.draw(model, prompts, sampling, prefix=prefix).tokens
    sampling = dataclasses.replace(sampling, stop_ids=(1, free[7][11]))
    whole = sampler.draw(model, prompts, sampling, prefix=prefix)
    asked = []

    def enough(number, tokens):
        assert tokens == whole.tokens[number][: len(tokens)]
        asked.append((number, len(tokens)))
        return number % 7 > 0 or number == 14 and len(tokens) >= 16

    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        there = nnx.merge(graph, jax.device_put(params, shardings(skeleton(CONFIG)[1], mesh)))
        some = sampler.draw(there, prompts, sampling, prefix=prefix, watch=sampler.Watch(8, enough))
    assert len(whole.tokens[7]) <= 12 and whole.ended[7] and len(whole.tokens[0]) == 41
    assert {length for _, length in asked} >= {8, 16}
    assert len(asked) == len(set(asked)) and max(length for number, length in asked if number % 7) == 8
    assert any(picked) or not unrolled
    for number, tokens in enumerate(whole.tokens):
        length = 8 if number % 7 else 16 if number == 14 else 41
        assert some.tokens[number] == tokens[:length]
        assert some.ended[number] == (whole.ended[number] and len(tokens) <= length)
        np.testing.assert_allclose(some.logps[number], whole.logps[number][:length], atol=1e-4)


def test_layers_scanned_or_one_by_one_draw_alike(model, tokenizer, monkeypatch):
    """12 tokens, 17 and 33: so that each way is compiled anew."""
    apart = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=12, seed=3)
    monkeypatch.setattr(decode, "APART", 0)
    stacked = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=17, seed=3)
    monkeypatch.setattr(call, "UNROLLED", 0)
    scanned = lm.generate(model, tokenizer, PROMPTS, max_new_tokens=33, seed=3)
    assert [row[:12] for row in stacked] == [row[:12] for row in scanned] == apart


def test_strings_for_strings_and_ids_for_ids(model, tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("the cat")]
    options = dict(max_new_tokens=8, temperature=0)
    [text] = lm.generate(model, tokenizer, ["the cat"], **options)
    [row] = lm.generate(model, tokenizer, [ids], **options)
    assert isinstance(text, str) and all(type(i) is int for i in row)
    assert text == tokenizer.decode(row) and "the cat" not in text
    assert lm.generate(model, tokenizer, [np.asarray(ids)], **options) == [row]
    assert lm.generate(model, tokenizer, ["the cat", ids], **options) == [text, row]
    assert lm.generate(model, tokenizer, []) == []
    assert isinstance(lm.generate(model, tokenizer, [""], **options)[0], str)


def test_ids_that_the_tokenizer_lacks_are_never_drawn(model, tokenizer):
    assert tokenizer.vocab_size < CONFIG.vocab_size
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda p: p, params)
    head = params["head"].get_value()
    params["head"].set_value(head.at[tokenizer.vocab_size :].multiply(100.0))  # it would like nothing better
    rows = lm.generate(nnx.merge(graph, params), tokenizer, PROMPTS, max_new_tokens=12, temperature=1.0)
    assert max(map(max, rows)) < tokenizer.vocab_size


@pytest.mark.parametrize(
    ("prompts", "options", "named"),
    [
        ("a string", {}, "list"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens"),
        (["a"], {"temperature": -0.1}, "temperature"),
        (["a"], {"top_p": 0.0}, "top_p"),
        (["a"], {"top_p": 1.1}, "top_p"),
        (["a"], {"top_k": -1}, "top_k"),
        (["a", "b"], {"stream": print}, "streaming"),
        ([[]], {}, "empty"),
        ([[400]], {}, "0…399"),
        ([[-1]], {}, "0…399"),
    ],
)
def test_bad_arguments_are_named(model, tokenizer, prompts, options, named):
    with pytest.raises(UserError, match=named):
        lm.generate(model, tokenizer, prompts, **options)


def shares(p, draws=4096, **settings):
    """How often each of four tokens is drawn from probabilities p; a fourth of a draw's standard error is 0.002."""
    logits = jnp.tile(jnp.log(jnp.asarray(p)), (draws, 1)) + 3  # a constant changes nothing
    drawn = sample(jax.random.split(jax.random.key(0), draws), logits, Sampling(1, **settings))
    return np.bincount(drawn, minlength=len(p)) / draws


P = [0.15, 0.5, 0.05, 0.3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, P),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 0.0, "top_k": 3, "top_p": 0.9}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, np.square(P) / np.square(P).sum()),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 5 / 8, 0, 3 / 8]),
        ({"top_k": 9}, P),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_p": 0.45}, [0, 1, 0, 0]),
        ({"top_p": 0.55}, [0, 5 / 8, 0, 3 / 8]),
        ({"top_p": 0.85}, [3 / 19, 10 / 19, 0, 6 / 19]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # of the two that are left, the first has 5/8
        ({"temperature": 0.5, "top_p": 0.6}, [0, 1, 0, 0]),  # the first has 0.68 of the sharpened
    ],
)
def test_draws_from_logits_by_hand(settings, expected):
    drawn = shares(P, **settings)
    np.testing.assert_allclose(drawn, expected, atol=0.03)
    assert ((drawn > 0) == (np.asarray(expected) > 0)).all()


@pytest.mark.parametrize(
    ("settings", "kept"), all_but([({"top_k": 3}, 3)], [({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_p": 0.4}, 2)])
)
def test_equal_logits_do_not_all_slip_in(settings, kept):
    assert (shares([0.25] * 4, **settings) > 0).tolist() == [i < kept for i in range(4)]
