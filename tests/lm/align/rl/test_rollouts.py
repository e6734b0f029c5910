"""Rollouts of several turns: what a tool answers goes on in the conversation and is not learnt from; a batch is pure."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.align import grpo
from data.chat.template import encode_chat
from data.text.sentencepiece_tokenizer import train
from lm.adapt import lora
from lm.align.rl.rewards import Rewards
from lm.align.rl.rollouts import RolloutSettings, arrays, roll_out, sampler_of
from lm.align.rl.stream import RolloutStream
from lm.align.rl.tools import Surroundings, answer_ids, open_tools
from lm.config import Adapter
from lm.infer.engine.local import Drawn
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.train.step import model_config_of
from tests.lm.align.batches import token_logprobs
from tests.lm.examples import parameters

TOOLS = open_tools(["calculator"])
NONE = Adapter()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


def task(tokenizer, question):
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "prompt_ids": encode_chat(tokenizer, prompt, add_generation_prompt=True).ids}


# Turns that are forced: no model draws them.


def call(expression):
    return f'<|tool|>{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}'


SCRIPT = {
    "once": [call("2 * 3"), "It is 6."],
    "again": [f"So: {call('1 + 1')}{call('2 / 0')}", call("5 * 5"), "25"],
    "at once": ["No idea."],
    "broken": ["<|tool|>2 * 3", "Sorry."],
    "cut": [f"{call('4 * 4')} and"],  # by the length
}


@pytest.fixture
def forced(tokenizer):
    """A function of roll_out's settings that rolls SCRIPT out. Returns: the tasks, the rollouts, and what each turn drew."""
    tasks = [task(tokenizer, question) for question in SCRIPT]
    tool, end = tokenizer.controls["<|tool|>"], tokenizer.controls["<|end|>"]

    def said(question, turn):
        first, *calls = SCRIPT[question][turn].split("<|tool|>")
        ids = tokenizer.encode(first) + [i for text in calls for i in (tool, *tokenizer.encode(text))]
        return ids if question == "cut" else [*ids, end]

    def rolled(**settings):
        turns = []

        def draw(model, prompts, sampling, layout):
            turn, drawn = {}, []
            for prompt in prompts:
                [question] = [q for q, t in zip(SCRIPT, tasks) if prompt[: len(t["prompt_ids"])] == t["prompt_ids"]]
                drawn.append(said(question, len(turns)))
                turn[question] = prompt.copy(), drawn[-1]
            turns.append(turn)
            return Drawn(drawn, [[-float(n + 1) for n in range(len(ids))] for ids in drawn], [ids[-1] == end for ids in drawn])

        return (
            tasks,
            roll_out(None, tokenizer, tasks, RolloutSettings(99, tools=TOOLS, **settings), types.SimpleNamespace(draw=draw)),
            turns,
        )

    return rolled


def test_answers_of_tools_go_on_in_the_conversation_and_are_masked(forced, tokenizer):
    tasks, rolled, turns = forced(max_turns=3)
    assert [set(turn) for turn in turns] == [set(SCRIPT), {"once", "again", "broken"}, {"again"}]
    told = {"once": [["6"]], "again": [["2", "error: division by zero"], ["25"]], "at once": [], "cut": []}
    for question, one, rollout in zip(SCRIPT, tasks, rolled, strict=True):
        answers = [m["content"] for m in rollout.messages if m["role"] == "tool"]
        if question == "broken":
            assert answers[0].startswith("error: the call is not JSON")
            told[question] = [answers]
        assert answers == sum(told[question], [])
        # By hand: the prompt, then by turns what was drawn and what was told.
        tokens, mask, logps = list(one["prompt_ids"]), [False] * len(one["prompt_ids"]), [0.0] * len(one["prompt_ids"])
        for n, turn in enumerate(turn for turn in turns if question in turn):
            prompt, drawn = turn[question]
            assert prompt == tokens, "a turn goes on from all that came before"
            back = answer_ids(tokenizer, told[question][n]) if n < len(told[question]) else []
            tokens += drawn + back
            mask += [True] * len(drawn) + [False] * len(back)
            logps += [-float(i + 1) for i in range(len(drawn))] + [0.0] * len(back)
        assert (rollout.tokens, rollout.mask, rollout.logps) == (tokens, mask, logps)
        assert rollout.messages[:1] == one["prompt"] and len(one["prompt"]) == 1
        if question not in ("broken", "cut"):  # the template writes the others otherwise
            chat = encode_chat(tokenizer, rollout.messages)
            assert (chat.ids[: len(tokens)], chat.assistant[: len(tokens)]) == (tokens, mask)
    assert [rollout.completion for rollout in rolled] == ["It is 6.", "25", "No idea.", "Sorry.", ""]
    assert [rollout.ended for rollout in rolled] == [True] * 4 + [False]
    assert [rollout.tool_calls for rollout in rolled] == [1, 3, 0, 1, 1]
    assert [rollout.tool_errors for rollout in rolled] == [0, 1, 0, 1, 0]

    longest = max(len(rollout.tokens) for rollout in rolled)
    for T in (longest + 3, longest - 4):  # the latter cuts the longest
        batch = arrays(rolled, T, tokenizer.pad_id)
        for row, rollout in enumerate(rolled):
            n = min(len(rollout.tokens), T + 1) - 1
            assert batch["tokens"][row, :n].tolist() == rollout.tokens[:n]
            assert batch["targets"][row, :n].tolist() == rollout.tokens[1 : n + 1]
            assert batch["weights"][row, :n].tolist() == rollout.mask[1 : n + 1] and not batch["weights"][row, n:].any()
            assert batch["sampler_logps"][row, :n].tolist() == rollout.logps[1 : n + 1]
            assert batch["segment_ids"][row, :n].all() and not batch["segment_ids"][row, n + 1 :].any()


@pytest.mark.parametrize("max_turns", [1, 2])
def test_no_more_turns_than_allowed(forced, max_turns):
    _, rolled, turns = forced(max_turns=max_turns)
    assert len(turns) == max_turns
    again = rolled[1]  # whose last turn calls too; nothing answers that
    roles = ["user", "assistant", "tool", "tool", "assistant"]
    assert [message["role"] for message in again.messages] == (roles[:2] if max_turns == 1 else roles)
    assert again.messages[-1]["tool_calls"] and again.mask[-1] and again.ended
    assert again.tool_calls == max_turns + 1


def test_no_turn_begins_that_might_not_fit(forced):
    _, whole, _ = forced(max_turns=3)
    told = whole[1].messages[:4]  # "again", when its first calls are answered
    room = 99 + len(whole[0].tokens)
    _, rolled, turns = forced(max_turns=3, most_tokens=room)
    assert rolled[0].tokens != whole[1].tokens and rolled[1].messages == told and not rolled[1].ended
    assert "again" not in turns[1] and all(len(rollout.tokens) <= room for rollout in rolled)


# Turns that a model draws.


@pytest.fixture(scope="module")
def drawn(tokenizer):
    """(a function that makes a stream of a config of its own, parameters of a model that often calls a tool, if never well)."""
    config = grpo.get_config()
    config.batch_size, config.sequence_length, config.dtype, config.rl.group_size = 8, 112, "float32", 4
    config.model.update(vocab_size=304, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.rollout.update(max_new_tokens=16, tools=("calculator",), max_turns=2)
    params = parameters(model_config_of(config), scale=4.0)
    head = params["head"].get_value()
    likely = np.asarray([tokenizer.controls[symbol] for symbol in ("<|tool|>", "<|end|>")])
    params["head"].set_value(head.at[likely].multiply(16.0))
    tasks = [task(tokenizer, f"the cat sat {n}") for n in range(5)]
    rewards = Rewards(("length",), (lambda prompts, completions, **columns: [float(len(c)) for c in completions],), (1.0,))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])

    with jax.set_mesh(mesh):
        params = scaled(params, 1.0)  # on the mesh, as those of a run

    def stream(seed=0, room=None, adapter=NONE):
        config.seed = seed
        own, model = config.copy_and_resolve_references(), dataclasses.replace(model_config_of(config), adapter=adapter)
        sampler = sampler_of(own, skeleton(model)[0], tokenizer, tasks, Surroundings(TOOLS), room=room)
        made = RolloutStream(own, mesh, sampler, tasks, rewards)
        made.start(0)
        return made

    return stream, params, mesh


def scaled(params, by):
    return jax.tree.map(lambda x: by * x, params)


def batch_of(stream, step, params):
    return {name: np.asarray(x) for name, x in stream.next(step, params, lambda: 0.0)[0].items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_batch_is_a_function_of_parameters_seed_and_step(drawn):
    stream, params, mesh = drawn
    with jax.set_mesh(mesh):
        straight = stream()
        batches = {step: batch_of(straight, step, params) for step in (1, 2, 3, 4)}  # beyond one round of the five tasks
        other, moved = stream(), scaled(params, 1.01)
        for step in (4, 1, 3, 3, 2):
            assert same(batch_of(other, step, params), batches[step]), step
        assert same(batch_of(stream(), 3, params), batches[3])
        assert not same(batches[1], batches[2])
        assert not same(batch_of(stream(seed=1), 2, params), batches[2])
        assert not same(batch_of(other, 2, moved), batches[2])
        assert same(batch_of(other, 2, params), batches[2])  # and the others left no trace


# With a packed copy of the weights, and with the model's own arrays.


@pytest.fixture(scope="module", params=["full", "lora"])
def both(request, drawn):
    """(a stream with a packed copy of the weights, one without, parameters, the mesh)."""
    stream, params, mesh = drawn
    adapter = NONE
    with jax.set_mesh(mesh):
        if request.param == "lora":
            adapter = Adapter(rank=2, alpha=4.0, targets=".*")
            config = nnx.merge(stream().sampler.graph, params).config
            _, params = lora.with_adapter(config, params, adapter)
            params = nnx.map_state(lambda path, x: x.replace(x + 0.1) if path[-1] == "lora_b" else x, params)
        ours, theirs = stream(adapter=adapter), stream(adapter=adapter, room=0)
        with contextlib.closing(ours.sampler), contextlib.closing(theirs.sampler):
            yield ours, theirs, params, mesh


def test_greedy_rollouts_are_the_same(both):
    ours, theirs, params, _ = both
    found, expected = (one.sampler(params, one.tasks, seed=0, each=2, temperature=0.0) for one in (ours, theirs))
    assert [dataclasses.replace(one, logps=[]) for one in found] == [dataclasses.replace(one, logps=[]) for one in expected]
    assert any(one.tool_calls and len(one.messages) == 4 for one in found), "a turn follows the answer of a tool"
    np.testing.assert_allclose(sum((one.logps for one in found), []), sum((one.logps for one in expected), []), atol=1e-4)


def test_the_engine_and_the_model_agree_on_every_turn(both):
    *streams, params, _ = both
    for one in streams:
        rolled = one.sampler(params, one.tasks, seed=1, each=4, temperature=0.7)
        batch = arrays(rolled, 112, 0)
        logps = jax.jit(lambda params: token_logprobs(nnx.merge(one.sampler.graph, params), batch, 0.7)[0])(params)  # noqa: B023
        np.testing.assert_allclose(np.asarray(logps) * batch["weights"], batch["sampler_logps"], atol=1e-4)
        assert len({tuple(rollout.tokens) for rollout in rolled}) > 10
        turns = [sum(after > before for before, after in zip(rollout.mask, rollout.mask[1:])) for rollout in rolled]
        two = [row for row, count in enumerate(turns) if count == 2]
        assert set(turns) <= {1, 2} and len(two) >= 4 and np.ptp(batch["sampler_logps"][two]) > 1


def test_a_batch_of_the_engine_is_a_function_of_parameters_seed_and_step(both):
    ours, _, params, _ = both
    batches = {step: batch_of(ours, step, params) for step in (1, 2)}
    moved = jax.tree.map(jnp.copy, params)
    assert same(batch_of(ours, 2, moved), batches[2]), "equal parameters in other arrays"
    assert not same(batch_of(ours, 2, scaled(params, 1.01)), batches[2])
    assert same(batch_of(ours, 1, params), batches[1]) and not same(batches[1], batches[2])
    ours.sampler.close()  # as where a run is resumed
    assert same(batch_of(ours, 2, params), batches[2])


def test_a_rollout_of_the_engine_depends_on_its_row_alone(both):
    ours, _, params, _ = both
    rolled = ours.sampler(params, ours.tasks[:3], seed=2, each=4)
    for each in (4, 1):
        fewer = ours.sampler(params, ours.tasks[:1], seed=2, each=each)
        assert [dataclasses.replace(one, logps=[]) for one in fewer] == [
            dataclasses.replace(one, logps=[]) for one in rolled[:each]
        ]
        for one, other in zip(fewer, rolled):
            np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)
