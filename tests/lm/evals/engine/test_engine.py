"""The engine answers by the request alone, remembers what it answered, and puts texts to the model as they should be."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from data.text.hf_tokenizer import HFTokenizer
from lm.errors import UserError
from lm.evals.engine.encoding import MARK, Encoding
from lm.evals.engine.likelihood import Request
from lm.evals.engine.model_subject import ModelSubject, windows
from lm.evals.task import Continuation, Prompt
from lm.parallel.mesh import make_mesh, shardings
from tests.data.chat import harmony_examples
from tests.lm.evals.engine.full_logits import reference
from tests.lm.evals.tiny_models import model, published, tokenizer, words
from tests.lm.infer import plain
from tests.slow import all_but

LENGTH = 64
NO_END = "no such text"
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """There is more to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def engine(ours, **options) -> ModelSubject:
    texts = {key: options.pop(key) for key in ("template", "system", "add_bos") if key in options}
    return ModelSubject(model(), Encoding(ours, **texts), name="tiny", progress=False, **{"max_length": LENGTH} | options)


def continuations() -> list[Continuation]:
    context = words(9, seed=1)
    return [
        *(Continuation(context, f" {words(n, seed=n)}") for n in (1, 2, 3)),
        Continuation(context + "  ", "abc"),
        Continuation("", " abc"),
        Continuation("   ", "abc"),
        Continuation(words(200, seed=2), " abc"),
    ]


def test_likelihoods_are_the_models_own(ours):
    one = engine(ours)
    asked = continuations()
    found = one.likelihoods(asked)
    for request, answer in zip(asked, found, strict=True):
        expected = reference(one.model, Request(answer.context_tokens, answer.tokens), LENGTH)
        assert answer.logp == pytest.approx(float(expected.logps.sum()), abs=1e-4)
        assert answer.greedy == bool(expected.greedy.all())
        whole = ours.decode([*answer.context_tokens, *answer.tokens])
        assert (request.context + request.continuation).endswith(whole) and len(answer.context_tokens) >= 1
    assert ours.decode(found[3].tokens) == "  abc" and found[4].context_tokens == (ours.bos_id,)
    assert len(found[6].context_tokens) + len(found[6].tokens) == LENGTH + 1
    assert [answer.cut for answer in found] == [n == 6 for n in range(len(found))]
    assert one.stats["requests"] == len(asked) and one.stats["tokens"] > 0


def test_a_request_that_cannot_be_asked_is_not_a_number(ours):
    found = engine(ours).likelihoods([Continuation("a", words(200, seed=0)), Continuation("a b", ""), Continuation("", "")])
    assert all(math.isnan(answer.logp) and not answer.greedy for answer in found)


def test_rolled_texts(ours):
    one = engine(ours, max_length=16)
    texts = [words(30, seed=3), "", "ab"]
    found = one.rolled(texts)
    assert [len(rolled.logps) for rolled in found] == [len(ours.prompt_ids(text)) for text in texts]
    ids = ours.prompt_ids(texts[0])
    last = -(-len(ids) // 16) * 16 - 16
    expected = reference(one.model, Request(ids[len(ids) - 17 : last], ids[last:]), 16)
    assert found[0].logps[last:] == pytest.approx(expected.logps.tolist(), abs=1e-5)
    assert found[0].tokens == tuple(ids)


def test_windows_hold_each_token_once():
    ids = list(range(100, 123))
    for length in (1, 4, 7, 23, 40):
        found = windows(ids, 2, length)
        assert [token for request in found for token in request.continuation] == ids
        assert found[0].context == [2]
        for n, request in enumerate(found[1:], start=1):
            read = len(request.context) + len(request.continuation) - 1
            assert read == length and request.context[-1] == ids[n * length - 1]
    assert windows([], 2, 4) == []


def prompts(**options) -> list[Prompt]:
    return [Prompt(words(n, seed=n), **options) for n in (1, 3, 12, 4)]


def test_draws_do_not_depend_on_the_others(ours):
    one = engine(ours)
    asked = (
        prompts(max_new_tokens=6, temperature=1.0)
        + prompts(max_new_tokens=6, temperature=1.0, seed=1)
        + prompts(max_new_tokens=6)
    )
    found = one.generate(asked)
    assert one.generate(asked[::-1]) == found[::-1]
    assert [one.generate([prompt])[0] for prompt in asked[2:8:3]] == found[2:8:3]
    assert found[:4] != found[4:8] and one.generate(asked[:1] * 3) == found[:1] * 3
    with jax.set_mesh(make_mesh({"data": 4, "tensor": 2})):
        assert engine(ours).generate(asked[:3]) == found[:3]


@pytest.mark.parametrize("sizes", all_but([EIGHT], [{}, EIGHT, {"data": 8}]))
def test_answers_are_those_of_forward_passes(ours, sizes):
    """On a mesh the model's own arrays are used."""
    one, examples = engine(ours, max_length=256), words(60, seed=8)
    asked = [*prompts(max_new_tokens=6), *(Prompt(f"{examples} {words(n, seed=n)}", max_new_tokens=6) for n in (1, 2))]
    found = one.generate(asked)
    for answer in found[:3]:
        plainly, _ = plain.greedy(one.model, [list(answer.prompt_tokens)], 6, (), ours.vocab_size)
        assert list(answer.tokens) == plainly[0]
    mesh = make_mesh(sizes, jax.devices() if sizes else jax.devices()[:1])
    graph, params = nnx.split(one.model)
    with jax.set_mesh(mesh):
        split = nnx.merge(graph, jax.device_put(params, shardings(params, mesh)))
        other = ModelSubject(split, Encoding(ours), name="tiny", progress=False, max_length=256, room=0)
        assert other.generate(asked) == found and other.stats["generated"] == one.stats["generated"] > 0


def test_an_end_symbol_ends_an_answer(ours):
    asked = [Prompt(words(n, seed=n), max_new_tokens=12) for n in range(1, 5)]
    whole, one = engine(ours).generate(asked), engine(ours)
    one.encoding.stop_ids = tuple({answer.tokens[2] for answer in whole})
    for answer, longer in zip(one.generate(asked), whole, strict=True):
        assert answer.ended and len(answer.tokens) < 3 and longer.tokens[: len(answer.tokens)] == answer.tokens


def test_parameters_that_are_not_finite_are_named(ours):
    graph, params = nnx.split(model())  # parameters that other tests share: they get others, not other values
    faulty = nnx.merge(graph, jax.tree.map(lambda x: jax.device_put(np.full(x.shape, np.nan, np.float32)), params))
    one = ModelSubject(faulty, Encoding(ours), name="tiny", progress=False, max_length=64)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        one.generate([Prompt("ab", max_new_tokens=4)])


def test_a_stop_string_ends_an_answer(ours):
    one = engine(ours, max_length=128)
    [whole] = one.generate([Prompt("ab", (NO_END,), 24)])
    [greedy] = one.generate([Prompt("ab", (), 24)])
    assert (whole.text, len(whole.tokens), whole.ended) == (greedy.text, 24, False)
    stop = ours.decode(whole.tokens[9:11])
    [cut, late] = one.generate([Prompt("ab", (NO_END, stop, ""), 24), Prompt("ab", (stop,), 24)])
    assert cut.text == whole.text.split(stop)[0] and cut.ended and stop not in cut.text
    assert whole.tokens[: len(cut.tokens)] == cut.tokens and stop in ours.decode(cut.tokens)
    assert stop not in ours.decode(cut.tokens[:-1]) and late.tokens == cut.tokens


def test_prompts_that_are_too_long(ours):
    one = engine(ours)
    [answer, none] = one.generate([Prompt(words(200, seed=5), max_new_tokens=8), Prompt("a", max_new_tokens=LENGTH)])
    assert answer.prompt_tokens == tuple(ours.prompt_ids(words(200, seed=5))[-(LENGTH - 8) :]) and answer.problem == ""
    assert none.text == "" and str(LENGTH) in none.problem and answer.cut
    assert not one.generate([Prompt("a", max_new_tokens=8)])[0].cut


class Killed(Exception):
    pass


def test_a_killed_evaluation_goes_on_to_the_same_answers(ours, tmp_path, monkeypatch):
    asked = continuations() + [Continuation(words(n, seed=n), " ab") for n in range(1, 40)]
    texts = prompts(max_new_tokens=5, temperature=1.0)

    def answers(**options):
        one = engine(ours, batch_tokens=128, **options)
        return (one.likelihoods(asked), one.rolled([words(100, seed=6)]), one.generate(texts)), one.stats

    whole, _ = answers()
    path = tmp_path / "answers.sqlite"
    one = engine(ours, batch_tokens=128, cache=path)
    add, batches = one._answers.add, []

    def dies(values):
        if len(batches) == 2:
            raise Killed
        batches.append(len(values))
        add(values)

    monkeypatch.setattr(one._answers, "add", dies)
    with pytest.raises(Killed):
        one.likelihoods(asked)
    again, stats = answers(cache=path)
    assert stats["cached"] >= sum(batches) > 0 and stats["cached"] < len(asked)
    assert repr(again) == repr(whole)
    third, stats = answers(cache=path)
    assert repr(third) == repr(whole) and stats["tokens"] == stats["generated"] == 0
    other = ModelSubject(model(logit_softcap=9.0), Encoding(ours), name="other", cache=path, max_length=LENGTH, progress=False)
    assert other.likelihoods(asked[:1]) != whole[0][:1] and other.stats["cached"] == 0


def test_of_a_batch_that_is_stopped_what_had_ended_is_kept(ours, tmp_path, monkeypatch):
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1}
    [first, *others] = engine(ours).generate(prompts(stops=(NO_END,), **options))
    stop = ours.decode(first.tokens[:2])
    assert stop and not any(stop in other.text for other in others)
    asked, path = prompts(stops=(stop,), **options), tmp_path / "answers.sqlite"
    whole, decode = engine(ours).generate(asked), ours.decode

    def dies(tokens):
        if len(tokens) > 4:
            raise Killed
        return decode(tokens)

    with monkeypatch.context() as stopped, pytest.raises(Killed):
        stopped.setattr(ours, "decode", dies)
        engine(ours, cache=path).generate(asked)
    one = engine(ours, cache=path)
    assert one.generate(asked) == whole and one.stats["cached"] == 1
    assert one.stats["generated"] == sum(len(answer.tokens) for answer in whole[1:])


def test_conversations(ours, tmp_path):
    _, folder = published(tmp_path)
    messages = [{"role": "user", "content": "ab <|end|> </s> cd"}]
    for one in (ours, HFTokenizer(folder)):
        encoding = Encoding(one, system="be brief")
        text = encoding.conversation(messages, "Sure")
        ids = encoding.ids(text)
        named = [symbol for i in ids for symbol, number in one.controls.items() if number == i]
        assert named == ["<s>", "<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>"]
        assert one.decode(ids).endswith("ab <|end|> </s> cdSure")
        assert encoding.conversation([{"role": "system", "content": "x"}, *messages]).count("be brief") == 0
        assert text.replace(MARK, "").endswith("<|user|>ab <|end|> </s> cd<|end|><|assistant|>Sure")
    plain = Encoding(ours, template="plain")
    assert plain.conversation([{"role": "user", "content": "ab"}], "cd") == "User: ab\n\nAssistant: cd"
    assert plain.ids("<s>a<|user|>b") == [2, *ours.encode("a"), ours.controls["<|user|>"], *ours.encode("b")]


def test_the_begin_symbol(ours, tmp_path):
    _, folder = published(tmp_path)
    theirs = HFTokenizer(folder)
    for text in ("ab cd", "", "<s>ab", "  ab"):
        assert Encoding(ours).ids(text) == Encoding(theirs).ids(text)
        without = Encoding(ours, add_bos=False).ids(text)
        assert without == (Encoding(ours).ids(text) if text.startswith("<s>") else ours.encode(text))
    assert Encoding(theirs).ids("ab") == theirs.prompt_ids("ab")


def test_a_damaged_answer_is_told(ours, tmp_path):
    path = tmp_path / "answers.sqlite"
    asked = continuations()[:2]
    engine(ours, cache=path).likelihoods(asked)
    one = engine(ours, cache=path)
    one._answers._file.execute("UPDATE answers SET value = x'0011'")
    with pytest.raises(UserError, match="damaged"):
        one.likelihoods(asked)


def test_answers_in_harmony_end_with_a_call_and_may_be_begun(tmp_path):
    tokenizer = harmony_examples.tokenizer(tmp_path)
    encoding, asked = Encoding(tokenizer), [{"role": "user", "content": "a"}]
    assert {tokenizer.controls[name] for name in ("<|return|>", "<|call|>")} <= {*encoding.stop_ids}
    assert tokenizer.controls["<|end|>"] not in encoding.stop_ids
    text = encoding.conversation(asked)
    assert text.endswith("<|start|>assistant")
    assert encoding.conversation(asked, "It is") == f"{text}<|channel|>final<|message|>It is"
