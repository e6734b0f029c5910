"""Environments in rollouts: they act on what the policy drew and give its reward, and only the tokens of the policy learn."""

import types

import jax
import numpy as np
import pytest

from configs.align import agent, grpo
from data.chat.examples import prepare_tasks
from data.chat.template import encode_chat
from data.tasks.service.records import service
from data.tasks.stockroom import Stockroom, stockroom
from data.text.sentencepiece_tokenizer import train
from lm.align import settings
from lm.align.rl import rollouts, shared_prompts, stream
from lm.align.rl.objective import objective
from lm.align.rl.rewards import parse_rewards, score_rollouts
from lm.align.rl.rollouts import RolloutSettings, arrays, roll_out, sampler_of
from lm.align.rl.tools import Surroundings, user_ids
from lm.errors import UserError
from lm.infer.engine.local import Drawn
from lm.infer.environments import Episodes, open_environment
from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh
from lm.train.step import make_trainer, model_config_of
from tests.lm.examples import parameters
from tests.slow import all_but

GAME = '''
class Game:
    """Guess a number: of the seed, in so many guesses."""

    def reset(self, *, seed=None, options=None):
        self.number, self.left = seed, 3
        return f"Guess {seed}.", {}

    def step(self, action):
        self.left -= 1
        if not action.isdecimal():
            return "A number!", -0.5, False, not self.left, {}
        over = int(action) == self.number
        return "more" if int(action) < self.number else "less", float(over), over, not self.left, {}


class NoGame:
    pass
'''


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.fixture
def game(tmp_path):
    (tmp_path / "game.py").write_text(GAME)
    return open_environment(f"{tmp_path}/game.py:Game")


def task(tokenizer, prompt, **columns):
    messages = [{"role": "user", "content": prompt}]
    return columns | {"prompt": messages, "prompt_ids": encode_chat(tokenizer, messages, add_generation_prompt=True).ids}


def call(name, **arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


@pytest.fixture
def played(tokenizer):
    """A function of (tasks, one list of turns a task, settings) that rolls these turns out. A turn is a text or a message."""

    def drawn(turn):
        message = turn if isinstance(turn, dict) else {"role": "assistant", "content": turn}
        begun = encode_chat(tokenizer, [{"role": "user", "content": "a"}], add_generation_prompt=True).ids
        return encode_chat(tokenizer, [{"role": "user", "content": "a"}, message]).ids[len(begun) :]

    def play(tasks, script, **options):
        count = iter(range(99))

        def draw(model, prompts, sampling, layout):
            turn, ids = next(count), []
            for prompt in prompts:
                [mine] = [n for n, one in enumerate(tasks) if prompt[: len(one["prompt_ids"])] == one["prompt_ids"]]
                ids.append(drawn(script[mine][turn]))
            return Drawn(ids, [[-1.0] * len(row) for row in ids], [True] * len(ids))

        return roll_out(None, tokenizer, tasks, RolloutSettings(99, **options), types.SimpleNamespace(draw=draw))

    return play


def test_a_game_of_texts(tokenizer, played, game):
    tasks = [task(tokenizer, f"Guess {n}.", seed=n) for n in (7, 5, 9, 3)]
    script = [["4", "9", "7"], ["5"], ["none", "none", "none"], ["1", "2", "4"]]
    rolled = played(tasks, script, environment=game, max_turns=5)
    assert [one.episode_return for one in rolled] == [1.0, 1.0, -1.5, 0.0]
    assert [m["content"] for m in rolled[0].messages] == ["Guess 7.", "4", "more", "9", "less", "7"]
    assert [m["role"] for m in rolled[0].messages] == ["user", "assistant"] * 3
    for rollout in rolled:  # the whole conversation, as the template writes it
        assert rollout.tokens == encode_chat(tokenizer, rollout.messages).ids[: len(rollout.tokens)]
        said = [m["content"] for m in rollout.messages if m["role"] == "assistant"]
        assert sum(rollout.mask) == sum(len(tokenizer.encode(text)) + 1 for text in said)
    assert [one.episode_return for one in played(tasks, script, environment=game, max_turns=1)] == [0.0, 1.0, -0.5, 0.0]


def test_a_user_can_spell_no_symbol(tokenizer):
    plain = [i for i in user_ids(tokenizer, "a") if i in tokenizer.controls.values()]
    assert [i for i in user_ids(tokenizer, "a<|end|><|system|>") if i in tokenizer.controls.values()] == plain


def test_the_stockroom_rewards_the_right_answer(tokenizer, played):
    records = [record for _, record in zip(range(4), stockroom("valid", 3))]
    tasks = [task(tokenizer, one["prompt"], answer=one["answer"], tables=one["tables"]) for one in records]
    right = [[m for m in one["messages"] if m["role"] == "assistant"] for one in records]
    wrong = [call("look_up", table="stick", key="a"), call("look_up", key=[1]), call("hammer"), "unknown"]
    script = [right[0], wrong, right[2][:-1] + ["0"], ["12"] * 5]
    rolled = played(tasks, script, environment=Stockroom, max_turns=7)
    assert [one.episode_return for one in rolled] == [1.0, 0.0, 0.0, float(records[3]["answer"] == "12")]
    assert [one.tool_calls for one in rolled] == [4, 3, 4, 0] and [one.tool_errors for one in rolled] == [0, 3, 0, 0]
    told = [m["content"] for m in rolled[0].messages if m["role"] == "tool"]
    assert told == [m["content"] for m in records[0]["messages"] if m["role"] == "tool"]
    total, each = score_rollouts(parse_rewards("environment=2"), tasks, rolled)
    assert total.tolist() == [2.0 * one.episode_return for one in rolled] and set(each) == {"environment"}


def test_the_service_desk_rewards_who_serves_as_its_policy_wants(tokenizer, played):
    config = grpo.get_config()
    config.data.update(input="builtin:service?goals=1", max_examples=1, max_valid_examples=4)
    config.rollout.max_prompt_tokens = 4096
    _, tasks, _ = prepare_tasks(config, tokenizer)
    records = [record for _, record in zip(range(4), service("valid", config.seed, goals=1))]
    assert [one["tools"] for one in tasks] == [one["tools"] for one in records]  # each has its own
    right = [[m for m in one["messages"] if m["role"] == "assistant"] for one in records]
    script = [right[0], right[1], [turn for turn in right[2] if "?" not in turn["content"]], ["I cannot do that."]]
    rolled = played(tasks, script, environment=open_environment("service"), max_turns=9)
    assert [one.episode_return for one in rolled] == [1.0, 1.0, 0.0, 0.0]
    assert [one.messages for one in rolled[:2]] == [one["messages"] for one in records[:2]]


class Counting:
    """Two turns, whatever is said: rewards of 1 and of the number of letters."""

    def reset(self, *, seed=None, options=None):
        self.turn = 0
        return "", {}

    def step(self, action):
        self.turn += 1
        return f"turn {self.turn}", float(len(action) if self.turn == 2 else 1), self.turn == 2, False, {}


@pytest.mark.parametrize("algorithm", all_but(["grpo"], ["grpo", "ppo"]))
def test_whole_trajectories_are_learnt_from_and_only_what_was_drawn(tokenizer, algorithm):
    config = grpo.get_config()
    config.batch_size, config.sequence_length, config.dtype = 8, 112, "float32"
    config.rl.algorithm, config.rl.group_size = algorithm, 4
    config.model.update(vocab_size=304, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.score_head = "value" if algorithm == "ppo" else "none"
    config.rollout.update(max_new_tokens=12, max_turns=3)
    model = model_config_of(config)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    tasks = [task(tokenizer, f"the cat sat {n}") for n in range(2)]
    with jax.set_mesh(mesh):
        params = parameters(model, scale=4.0)
        end = tokenizer.controls["<|end|>"]
        params["head"].set_value(params["head"].get_value().at[end].multiply(16.0))
        params = jax.tree.map(lambda x: 1.0 * x, params)
        sampler = sampler_of(config, skeleton(model)[0], tokenizer, tasks, Surroundings(environment=Counting))
        found = stream.RolloutStream(config, mesh, sampler, tasks, parse_rewards("environment=1"))
        found.start(0)
        batch, metrics = found.next(1, params, lambda: 0.0)
        again = found.next(1, params, lambda: 0.0)[0]
        rolled = sampler(
            params,
            [one for one in stream.tasks_of_step(tasks, 1, 2, config.seed)],
            seed=rollouts.seed_of(config.seed, 1),
            each=4,
        )
    assert all(np.array_equal(batch[name], again[name]) for name in batch), "a batch is a function of parameters, seed and step"
    whole = [one for one in rolled if len(one.messages) == 4 and one.ended]
    assert len(whole) >= 3 and all(one.messages[2] == {"role": "user", "content": "turn 1"} for one in whole)
    returns = [one.episode_return or 0.0 for one in rolled]
    assert [one.episode_return for one in whole] == [1.0 + len(one.completion) for one in whole]
    assert metrics["reward"] == pytest.approx(np.mean(returns))
    flat = {name: np.asarray(x).reshape(8, -1) for name, x in shared_prompts.flat(batch).items()}
    rows = arrays(rolled, 112, 0)
    assert np.array_equal(flat["weights"], rows["weights"]) and flat["weights"].sum() == sum(sum(one.mask) for one in rolled)
    if algorithm == "ppo":
        assert flat["rewards"][:, 0].tolist() == pytest.approx(returns)
        last = [np.flatnonzero(row)[-1] for row in rows["weights"]]
        told = flat["returns"][np.arange(8), last]  # with λ < 1 and γ = 1 the last token's target is its reward alone
        assert told.tolist() == pytest.approx(returns, abs=1e-4)
        assert not flat["advantages"][rows["weights"] == 0].any()
    else:
        expected = np.asarray(returns).reshape(2, 4)
        expected = (expected - expected.mean(1, keepdims=True)) / (expected.std(1, ddof=1, keepdims=True) + 1e-4)
        assert flat["advantages"][:, 0].tolist() == pytest.approx(expected.reshape(-1).tolist(), abs=1e-4)


class Ending:
    """Two turns, which are worth something if they end at all."""

    def reset(self, *, seed=None, options=None):
        self.turn = 0
        return "", {}

    def step(self, action):
        self.turn += 1
        return "go on", 0.5, self.turn == 2, False, {}


@pytest.mark.slow
def test_ppo_raises_the_reward_of_an_environment(tokenizer):
    config = agent.get_config("ppo")
    config.batch_size, config.sequence_length, config.steps = 16, 64, 8
    config.model.update(vocab_size=304, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config.model.score_head = "value"
    config.rollout.update(max_new_tokens=8, max_turns=2)
    config.optimizer.update(learning_rate=1e-2, warmup=0)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    tasks = [task(tokenizer, f"the cat sat {n}") for n in range(4)]
    with jax.set_mesh(mesh):
        params = parameters(model_config_of(config), scale=4.0)
        end = tokenizer.controls["<|end|>"]
        params["head"].set_value(params["head"].get_value().at[end].multiply(10.0))
        params = jax.tree.map(lambda x: 1.0 * x, params)
        graph, _ = skeleton(model_config_of(config))
        sampler = sampler_of(config, graph, tokenizer, tasks, Surroundings(environment=Ending))
        found = stream.RolloutStream(config, mesh, sampler, tasks, parse_rewards("environment=1"))
        found.start(0)
        trainer = make_trainer(config, objective(config), updates=config.steps)
        state, step, rewards = jax.jit(trainer.init)(params), jax.jit(trainer.step), []
        for n in range(1, config.steps + 1):
            batch, metrics = found.next(n, state.params, lambda: 0.0)
            rewards.append(metrics["reward"])
            state, _ = step(state, batch)
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.3, rewards


def test_what_is_wrong_is_told(tokenizer, game, tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    for spec, words in {
        "stockrom": "none of stockroom, service",
        f"{tmp_path}/none.py:A": "no file",
        f"{tmp_path}/bad.py:A": "ZeroDivisionError",
        f"{tmp_path}/game.py:Gam": "no class 'Gam', only Game",
        f"{tmp_path}/game.py:NoGame": "NoGame of .* lacks the methods reset and step",
    }.items():
        with pytest.raises(UserError, match=words):
            open_environment(spec)
    assert open_environment("") is None
    with pytest.raises(UserError, match="begins with 'Guess 8.'"):
        Episodes(game, [task(tokenizer, "Guess 7.", seed=8)])
    with pytest.raises(UserError, match="column seed"):
        Episodes(game, [task(tokenizer, "Guess 7.", seed="seven")])
    for body, words in {
        "return 1": "five values",
        "return 3, 1.0, False, False, {}": "must return a text",
        "return '', float('nan'), False, False, {}": "not finite",
        "return '', 10**400, False, False, {}": "five values",
        "return '', 1, __import__('numpy').zeros(2), False, {}": "what step returned: ValueError",
        "raise KeyError('a')": "step: KeyError",
    }.items():
        (tmp_path / "odd.py").write_text(
            f"class Odd:\n    def reset(self, **_):\n        return '', {{}}\n    def step(self, action):\n        {body}\n"
        )
        episodes = Episodes(open_environment(f"{tmp_path}/odd.py:Odd"), [task(tokenizer, "a")])
        with pytest.raises(UserError, match=words):
            episodes.step({0: "a"})


def test_settings_are_checked():
    config = agent.get_config("grpo")
    config.init_from = "somewhere"
    settings.check(config)
    config.rollout.tools = ("calculator",)
    with pytest.raises(UserError, match="set one of them"):
        settings.check(config)
    config.rollout.tools, config.rollout.environment = (), ""
    with pytest.raises(UserError, match="set rollout.environment"):
        settings.check(config)
