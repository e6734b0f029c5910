"""A program with compiled kernels. Prints how many programs came from JAX's cache on disk: 1 if this one was stored."""

import jax
import jax.numpy as jnp

from lm.kernels.attention import Scoring
from lm.kernels.cpu.packed import pack
from lm.kernels.cpu.pages import Places, empty_pages
from lm.kernels.ops import packed_product, paged_attention, write_pages


def main() -> None:
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
    x_TK, packed, pages = jnp.ones((2, 32)), pack(jnp.ones((32, 64))), empty_pages(2, 4, 1, 32)

    @jax.jit
    def step(x_TK, packed, pages):
        zeros_T = jnp.zeros(2, jnp.int32)
        pages = write_pages(pages, x_TK[:, None], jnp.arange(2))
        places = Places(jnp.zeros((1, 1), jnp.int32), zeros_T, zeros_T)
        mixed_THV = paged_attention(x_TK[:, None], pages, pages, places, Scoring(1.0))
        return packed_product(mixed_THV[:, 0], packed)

    hits.clear()
    y_TN = step(x_TK, packed, pages)
    print(len(hits))
    assert (y_TN == 32).all()


if __name__ == "__main__":
    main()
