"""Completions against plain repeated forward passes, and what is asked of them."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lm
from data.chat.harmony import spelled
from data.chat.messages import make_message
from data.text.sentencepiece_tokenizer import train
from lm.config import ModelConfig
from lm.errors import UserError
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Request
from lm.infer.engine.room import Capacity
from lm.infer.generate import _engines as engines
from lm.infer.generate import pieces
from lm.infer.prompts import read_chat
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from tests.data.chat import harmony_examples
from tests.lm.infer.plain import greedy
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


def test_greedy_is_repeated_forward_passes(model, tokenizer):
    plain, _ = greedy(model, PROMPTS, 12, vocab_size=tokenizer.vocab_size)
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
    # alone and streamed
    assert lm.generate(ending, tokenizer, PROMPTS[1:2], max_new_tokens=12, temperature=0) == expected[1:2]
    streamed = lm.generate(ending, tokenizer, PROMPTS[1:2], max_new_tokens=12, temperature=0, stream=lambda text: None)
    assert streamed == expected[1:2]


@pytest.mark.parametrize("seed", all_but([0], [0, 1, 2]))
def test_streaming_gives_the_same_text(model, tokenizer, seed):
    # A random model draws many bytes that are no UTF-8: what is shown must never have to be taken back.
    options = dict(max_new_tokens=30, temperature=1.0, top_p=0.95, seed=seed)
    pieces = []
    streamed = lm.generate(model, tokenizer, ["the cat"], stream=pieces.append, **options)
    assert streamed == lm.generate(model, tokenizer, ["the cat"], **options)
    assert "".join(pieces) == streamed[0]
    assert len(pieces) > 10 and all(pieces)


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


def test_streaming_waits_for_all_bytes_of_a_character(model, tokenizer):
    said = ["a", "é", "\u6df1", "🙂", "\ufffd"]  # the last one also stands for invalid bytes
    byte = {tokenizer.decode_bytes([i]): i for i in reversed(range(tokenizer.vocab_size))}
    first, *row = [byte[bytes([b])] for b in "".join([">", *said]).encode()]
    assert len({first, *row}) == len(row) + 1
    speaker, pieces = one_after_the_other(model, [first, *row]), []
    options = dict(temperature=0, stream=pieces.append)
    assert lm.generate(speaker, tokenizer, [[first]], max_new_tokens=len(row), **options) == [row]
    assert "".join(pieces) == "".join(said)
    assert pieces == said
    pieces.clear()
    lm.generate(speaker, tokenizer, [[first]], max_new_tokens=len(row) - 5, **options)  # two of the four bytes of 🙂
    assert "".join(pieces) == "aé\u6df1\ufffd"


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


@pytest.mark.parametrize("sizes", all_but([EIGHT], [EIGHT, {"data": 8}]))
def test_a_mesh_draws_what_one_device_draws(model, tokenizer, sizes):
    options = dict(max_new_tokens=12, temperature=0.8, top_p=0.95, seed=3)
    expected = lm.generate(model, tokenizer, PROMPTS, **options)
    mesh = make_mesh(sizes)
    graph, params = nnx.split(model)
    with jax.set_mesh(mesh):
        there = nnx.merge(graph, jax.device_put(params, shardings(skeleton(CONFIG)[1], mesh)))
        assert lm.generate(there, tokenizer, PROMPTS, **options) == expected


def test_an_engine_stays_as_long_as_its_model_and_sees_new_values(tokenizer):
    own = nnx.merge(skeleton(CONFIG)[0], parameters(CONFIG, scale=4.0))
    options = dict(max_new_tokens=12, temperature=0)
    first = lm.generate(own, tokenizer, PROMPTS, **options)
    count = len(engines)
    assert lm.generate(own, tokenizer, PROMPTS, **options) == first and len(engines) == count
    own.head.set_value(own.head.get_value()[::-1])
    second = lm.generate(own, tokenizer, PROMPTS, **options)
    assert second == greedy(own, PROMPTS, 12, vocab_size=tokenizer.vocab_size)[0] != first
    del own
    gc.collect()
    assert len(engines) == count - 1


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


class Script:
    """A form that allows one text, token by token."""

    error = ""

    def __init__(self, tokens, size: int):
        self.left, self.size = [*tokens], size

    def allowed(self) -> np.ndarray:
        return np.arange(self.size) == self.left[0]

    def accept(self, token: int) -> None:
        assert token == self.left.pop(0)


def test_a_stream_in_harmony_ends_a_call_as_the_whole_text_does(tmp_path):
    tokenizer = harmony_examples.tokenizer(tmp_path)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    engine = Engine(nnx.merge(skeleton(config)[0], parameters(config)), tokenizer, Capacity(rows=1, budget=64, pages=64))
    prompt = read_chat(tokenizer, [make_message("user", "a")])
    text = (
        '<|channel|>analysis<|message|>b<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"c": 1}'
    )
    for end, count in (["<|call|>"], 99), ([], len(tokenizer.encode_rendered(text)[0])):  # a limit cuts the second one
        tokens = [*tokenizer.encode_rendered(text)[0], *(tokenizer.controls[name] for name in end)]
        form = Script(tokens, config.vocab_size)
        request = Request(tuple(prompt.ids), count, temperature=0.0, stop_ids=prompt.stops, grammar=form)
        found = "".join(piece.text for piece in pieces(engine, request))
        assert found == spelled(tokenizer, tokens, begun=True)
        assert found.endswith('{"name": "f", "arguments": {"c": 1}}\n</tool_call>')
    engine.close()
