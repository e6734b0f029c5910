"""A reward model as a reward: the score of each conversation by itself, whatever batch, padding or mesh it is scored in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.chat.template import encode_chat
from data.text import sentencepiece_tokenizer as tokenizer
from lm.align.rl.rewards import parse_rewards, scored
from lm.config import ModelConfig
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.infer.load import load
from lm.parallel.mesh import make_mesh
from tests.lm.examples import parameters

ANSWERS = ["yes", "no no no, and once more no", "", *(f"answer {i} of many" for i in range(70))]
PROMPTS = [[{"role": "user", "content": f"question {i}?"}] for i in range(len(ANSWERS))]


def a_run(workdir, score_head: str):
    workdir.mkdir()
    tokenizer.train(
        ["question answer yes no of many and once more " * 20],
        workdir / "tokenizer.model",
        vocab_size=320,
        sample_bytes=10_000,
        seed=0,
        threads=1,
    )
    config = ModelConfig(
        vocab_size=320,
        num_layers=1,
        embed_dim=32,
        num_heads=2,
        num_kv_heads=2,
        mlp_dim=48,
        dtype="float32",
        score_head=score_head,
    )
    write_workdir(workdir, config, parameters(config, scale=5.0))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return a_run(tmp_path_factory.mktemp("reward") / "run", "reward")


@pytest.fixture(scope="module")
def alone(run) -> np.ndarray:
    """The slow twin: each conversation in a row of its own length, its score read at the symbol that ends the answer."""
    model, own = load(run)
    found = []
    forward = nnx.jit(lambda model, tokens: model.scores(model.hidden(tokens).x_BTD))
    for prompt, answer in zip(PROMPTS[:3], ANSWERS):
        ids = encode_chat(own, [*prompt, {"role": "assistant", "content": answer}]).ids
        assert ids[-1] == own.controls["<|end|>"]
        found.append(float(forward(model, jnp.asarray([ids]))[0, -1]))
    return np.asarray(found)


@pytest.mark.parametrize("mesh", [None, {"data": 4, "fsdp": 2}])
def test_scores_are_those_of_each_conversation_alone(run, alone, mesh):
    rewards = parse_rewards(f"reward_model:{run}=2")
    assert rewards.names == ("reward_model",)
    with jax.set_mesh(make_mesh(mesh)) if mesh else jax.default_device(None):
        total, each = scored(rewards, PROMPTS, ANSWERS, {})
    assert total.shape == (len(ANSWERS),) and len(set(total.tolist())) > 60
    np.testing.assert_allclose(each["reward_model"][:3], alone, atol=1e-5)
    np.testing.assert_allclose(total, 2 * each["reward_model"])


def test_what_does_not_score_is_refused_before_anything_runs(tmp_path):
    other = a_run(tmp_path / "policy", "none")
    for path, said in ((other, "is no reward model"), (tmp_path / "nowhere", "nowhere")):
        with pytest.raises(UserError, match=said):
            parse_rewards(f"reward_model:{path}=1")
