"""Speed of the CPU kernels for serving, beside what XLA does by itself.

python -m benchmarks.cpu_kernels [--rounds=15]
taskset -c 0 python -m benchmarks.cpu_kernels --clock=processor          one core, whatever else runs on it

Products: all matrices of SmolLM2-135M (30 layers and the tied head, 134.5 million weights) in one program, as a step of
decoding multiplies them, for M rows. Attention: 32 sequences with 500 tokens each, one layer of the same model. A time is the
best of all rounds, which take the competitors in turns. The last line is one JSON object.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from lm.kernels.attention import Scoring
from lm.kernels.cpu.packed import pack
from lm.kernels.cpu.pages import Places, empty_pages
from lm.kernels.ops import packed_product, paged_attention, write_pages

D, F, LAYERS, VOCABULARY = 576, 1536, 30, 49152
HEADS, KV_HEADS, HEAD, PAGE = 9, 3, 64, 16
MATRICES = ((D, 960), (D, D), (D, 2 * F), (F, D))  # query, key and value; output; gate and up; down
ROWS = (1, 4, 8, 16, 32, 64)
KINDS = {
    "XLA float32": (32, 0),
    "bfloat16": (16, 0),
    "int8": (8, 0),
    "int4, groups of 32": (4, 32),
    "int4": (4, 0),
}  # bits, group
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
WEIGHTS = LAYERS * sum(K * N for K, N in MATRICES) + D * VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="seconds of the wall or of the processor")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    products, attention = product_times(options.rounds, clock), attention_times(options.rounds, clock)
    for name, times in products.items():
        for M, seconds in times.items():
            speed = f"{bytes_of(name) / seconds / 1e9:6.1f} GB/s {2e-9 * WEIGHTS * M / seconds:7.1f} GFLOP/s"
            print(f"{name:20} M={M:3} {1e3 * seconds:8.2f} ms {speed}")
    for name, seconds in attention.items():
        print(f"attention, {name:25} {1e3 * seconds:8.2f} ms a layer")
    print(json.dumps({"products": products, "attention": attention}))


def bytes_of(name: str) -> float:
    bits, group = KINDS[name]
    return WEIGHTS * (bits / 8 + (2 / group if group else 0))


def best(calls: dict, rounds: int, clock) -> dict:
    """Return the least seconds of each call."""
    times: dict = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            times[name].append(clock() - start)
    return {name: min(values) for name, values in times.items()}


def product_times(rounds: int, clock) -> dict[str, dict[int, float]]:
    weights = {name: matrices(*how) if name != "XLA float32" else matrices(0, 0) for name, how in KINDS.items()}
    steps = {name: jax.jit(plain_step if name == "XLA float32" else packed_step) for name in KINDS}
    found: dict[str, dict[int, float]] = {name: {} for name in KINDS}
    for M in ROWS:
        x_MD = jax.random.normal(jax.random.key(M), (M, D))
        calls = {name: lambda name=name, x_MD=x_MD: steps[name](x_MD, weights[name]) for name in KINDS}
        for name, seconds in best(calls, rounds, clock).items():
            found[name][M] = seconds
    return found


def matrices(bits: int, group: int):
    """Return the matrices of all layers, then the head. bits 0: as plain float32."""
    rng = np.random.default_rng(0)
    make = jax.jit(lambda w: pack(w, bits, group) if bits else w)
    shapes = [shape for _ in range(LAYERS) for shape in MATRICES] + [(D, VOCABULARY)]
    return [jax.block_until_ready(make(rng.standard_normal(shape, np.float32) * shape[0] ** -0.5)) for shape in shapes]


def plain_step(x_MD, weights):
    return _step(x_MD, weights, lambda x, w: x @ w)


def packed_step(x_MD, weights):
    return _step(x_MD, weights, packed_product)


def _step(x_MD, weights, multiply):
    """Multiply with all matrices, each with the result of the one before."""
    *layers, head = weights
    for query, output, up, down in zip(layers[::4], layers[1::4], layers[2::4], layers[3::4]):
        x_MD = multiply(multiply(x_MD, query)[:, :D], output)
        x_MD = multiply(multiply(x_MD, up)[:, :F], down)
    return multiply(x_MD, head)


def attention_times(rounds: int, clock, sequences: int = 32, length: int = 500) -> dict[str, float]:
    pages = -(-length // PAGE)
    tables_RP = jnp.asarray(np.random.default_rng(0).permutation(sequences * pages).reshape(sequences, pages), jnp.int32)
    slots_T = (tables_RP[:, :, None] * PAGE + jnp.arange(PAGE)).reshape(-1)
    new_TGK = jax.random.normal(jax.random.key(0), (slots_T.shape[0], KV_HEADS, HEAD))
    q_THK = jax.random.normal(jax.random.key(1), (sequences, HEADS, HEAD))
    rows_T, places_T = jnp.arange(sequences), jnp.full((sequences,), length - 1)
    calls = {}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8):
        pool = write_pages(empty_pages(sequences * pages, PAGE, KV_HEADS, HEAD, dtype), new_TGK, slots_T)
        attend = jax.jit(lambda q, k, v, *where: paged_attention(q, k, v, Places(*where), Scoring(HEAD**-0.5)))
        calls[f"pages of {jnp.dtype(dtype)}"] = lambda f=attend, p=pool: f(q_THK, p, p, tables_RP, rows_T, places_T)
        if dtype == jnp.float32:
            calls["XLA, gathered pages"] = lambda p=pool.values: gathered(q_THK, p, p, tables_RP, places_T)
    return best(calls, rounds, clock)


@jax.jit
def gathered(q_RHK, k, v, tables_RP, places_R):
    """Attend in plain JAX: gather the pages of all sequences, mask what is not there."""
    R, H, K = q_RHK.shape
    k_RSGK, v_RSGK = (pool[tables_RP].reshape(R, -1, KV_HEADS, K) for pool in (k, v))
    scores = jnp.einsum("rgqk,rsgk->rgqs", q_RHK.reshape(R, KV_HEADS, -1, K), k_RSGK) * K**-0.5
    seen_RS = jnp.arange(k_RSGK.shape[1]) <= places_R[:, None]
    weights = jax.nn.softmax(jnp.where(seen_RS[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("rgqs,rsgk->rgqk", weights, v_RSGK).reshape(R, H, K)


if __name__ == "__main__":
    main()
