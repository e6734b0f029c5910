"""Programs with compiled kernels are stored in JAX's cache on disk, and another process loads and runs them."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax, jax.numpy as jnp
from lm.kernels.cpu.packed import pack, packed_matmul
from lm.kernels.cpu.pages import empty_pages, paged_attention, write_pages

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
x_TK, packed, pages = jnp.ones((2, 32)), pack(jnp.ones((32, 64))), empty_pages(2, 4, 1, 32)

@jax.jit
def step(x_TK, packed, pages):
    zeros_T = jnp.zeros(2, jnp.int32)
    pages = write_pages(pages, x_TK[:, None], jnp.arange(2))
    mixed_THV = paged_attention(x_TK[:, None], pages, pages, jnp.zeros((1, 1), jnp.int32), zeros_T, zeros_T, scale=1.0)
    return packed_matmul(mixed_THV[:, 0], packed)

hits.clear()
y_TN = step(x_TK, packed, pages)
print(len(hits))
assert (y_TN == 32).all()
"""


def test_another_process_loads_and_runs_a_stored_program(tmp_path):
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    found = []
    for _ in range(2):
        command, root = [sys.executable, "-c", PROGRAM], Path(__file__).parents[4]
        done = subprocess.run(command, cwd=root, env={**os.environ, **settings}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout))
    assert found == [0, 1]
