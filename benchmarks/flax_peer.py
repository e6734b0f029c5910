"""A plain Flax Llama, as a first version is written: bfloat16 layers over float32 parameters, one jitted step of optax.adamw.

    python -m benchmarks.flax_peer --shape='{"layers": 6}' --steps=10

Prints what benchmarks.peers prints, as JSON. It uses nothing of this project.
"""

import argparse
import json
import os
import resource
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.peers import WARMUP_STEPS, Shape, result


class Block(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        def dense(*sizes):
            return nnx.Linear(*sizes, use_bias=False, dtype=jnp.bfloat16, rngs=rngs)

        self.shape, q = shape, shape.heads * shape.head_size
        self.attention_norm = nnx.RMSNorm(shape.width, dtype=jnp.bfloat16, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(shape.width, dtype=jnp.bfloat16, rngs=rngs)
        self.q, self.out = dense(shape.width, q), dense(q, shape.width)
        self.k, self.v = (dense(shape.width, shape.kv_heads * shape.head_size) for _ in range(2))
        self.gate, self.up = (dense(shape.width, shape.feed_forward) for _ in range(2))
        self.down = dense(shape.feed_forward, shape.width)

    def __call__(self, x_BTD, cos_TK, sin_TK):
        h_BTD = self.attention_norm(x_BTD)
        q, k, v = (f(h_BTD).reshape(*h_BTD.shape[:2], -1, self.shape.head_size) for f in (self.q, self.k, self.v))
        q, k = rotate(q, cos_TK, sin_TK), rotate(k, cos_TK, sin_TK)
        y_BTHK = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(y_BTHK.reshape(*x_BTD.shape[:2], -1))
        h_BTD = self.mlp_norm(x_BTD)
        return x_BTD + self.down(nnx.silu(self.gate(h_BTD)) * self.up(h_BTD))


class Llama(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        self.embed = nnx.Embed(shape.vocab, shape.width, dtype=jnp.bfloat16, rngs=rngs)
        self.blocks = nnx.List([Block(shape, rngs) for _ in range(shape.layers)])
        self.norm = nnx.RMSNorm(shape.width, dtype=jnp.bfloat16, rngs=rngs)
        if not shape.tied:
            self.head = nnx.Linear(shape.width, shape.vocab, use_bias=False, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, tokens_BT):
        rate = 10_000.0 ** -(jnp.arange(0, self.shape.head_size, 2) / self.shape.head_size)
        angle_TK = jnp.tile(jnp.outer(jnp.arange(tokens_BT.shape[1]), rate), 2)[:, None]
        cos, sin = jnp.cos(angle_TK).astype(jnp.bfloat16), jnp.sin(angle_TK).astype(jnp.bfloat16)
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        x_BTD = self.norm(x_BTD)
        return self.embed.attend(x_BTD) if self.shape.tied else self.head(x_BTD)


def rotate(x, cos, sin):
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flax_peer", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="{}", help="JSON object; absent keys keep the defaults of benchmarks.peers.Shape")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    flags = parser.parse_args()
    shape = Shape.from_json(flags.shape)
    model = Llama(shape, nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.95, weight_decay=0.1)), wrt=nnx.Param
    )

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, tokens_BT):
        def loss_of(model):
            logits_BTV = model(tokens_BT[:, :-1]).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:]).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    draw, frequency_V = np.random.default_rng(0), 1.0 / np.arange(1, shape.vocab + 1)
    timed = []
    for _ in range(flags.steps + WARMUP_STEPS):
        tokens_BT = draw.choice(shape.vocab, (shape.batch, shape.length), p=frequency_V / frequency_V.sum())
        start = time.perf_counter()
        loss = float(step(model, optimizer, jnp.asarray(tokens_BT)))
        timed.append((time.perf_counter() - start, loss))
    print(
        json.dumps(
            result("flax", shape, timed[WARMUP_STEPS:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            | {
                "parameters": sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))),
                "threads": os.cpu_count(),
                "versions": {"jax": jax.__version__, "flax": flax.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
