"""A tiny model that has learnt one conversation by heart: it calls the calculator and repeats its answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data.chat.template import encode_chat
from data.tasks.arithmetic import CALCULATOR
from data.text.sentencepiece_tokenizer import train
from lm.align.logprobs import logprobs_of
from lm.config import ModelConfig
from lm.convert.to_workdir import write_workdir
from lm.model.inputs import Inputs
from lm.model.transformer import skeleton
from tests.lm.weights import drawn as parameters

QUESTION = "What is 17 * 23?"
CALL = {"name": "calculator", "arguments": {"expression": "17 * 23"}}
CONVERSATION = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "391"},
    {"role": "assistant", "content": "It is 391."},
]
STEPS = 60


def taught(folder):
    """Write the model and its tokenizer to the workdir `folder`. Returns: the model, the tokenizer."""
    text = ['{"name": "calculator", "arguments": {"expression": "17 * 23"}} It is 391. What is 17 * 23?\n'] * 9
    tokenizer = train(text, folder / "tokenizer.model", vocab_size=330, sample_bytes=1 << 16, seed=0, threads=1)
    chat = encode_chat(tokenizer, CONVERSATION, tools=[CALCULATOR])
    ids, learnt = np.asarray(chat.ids, np.int32)[None], np.asarray(chat.assistant, np.float32)[None, 1:]
    config = ModelConfig(
        vocab_size=384, num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=48, max_positions=1024, dtype="float32"
    )
    graph, _ = skeleton(config)
    T = ids.shape[1] - 1
    rows = ids[:, :-1], np.ones((1, T), np.int32), np.arange(T, dtype=np.int32)[None]

    def loss(params):
        model = nnx.merge(graph, params)
        logps_BT, _ = logprobs_of(model, model.hidden(Inputs(*rows)).x_BTD, ids[:, 1:], 1.0)
        return -jnp.sum(logps_BT * learnt) / jnp.sum(learnt)

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        before, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, before

    params = parameters(config, 0)
    state = jax.jit(optimizer.init)(params)
    for _ in range(STEPS):
        params, state, before = step(params, state)
    assert before < 0.05
    model = nnx.merge(graph, params)
    write_workdir(folder, config, params, init_from="a base model")
    return model, tokenizer
