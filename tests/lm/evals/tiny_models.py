"""A random model of two layers with a tokenizer of its own, as a workdir and as a published checkpoint."""

import functools
import random
from pathlib import Path

import jax
import numpy as np

from data.text.sentencepiece_tokenizer import train
from data.text.tokenizer import load_tokenizer
from lm.config import ModelConfig
from lm.convert.to_published import to_published
from lm.convert.to_workdir import write_workdir
from lm.model.transformer import Transformer
from tests.lm.weights import drawn

SIZES = dict(vocab_size=320, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)


def words(n: int, seed: int) -> str:
    """Text without sense, of a few dozen words."""
    known = random.Random(0)
    vocabulary = ["".join(known.choices("abcdefghij", k=known.randint(1, 7))) for _ in range(60)]
    return " ".join(random.Random(seed).choices(vocabulary, k=n))


@functools.cache
def parameters(config: ModelConfig, scale: float = 3.0):
    """Initial parameters, their matrices larger, so that what comes before a token matters; control symbols and lone bytes
    have logits of 0, so that what is written is text."""

    params = jax.tree.map(lambda p: p, drawn(config, scale=scale))
    if "head" in params:
        head = np.array(params["head"].get_value())
        head[:272] = 0
        params["head"].set_value(jax.device_put(head))
    return params


def model(**config) -> Transformer:
    from flax import nnx

    from lm.model.transformer import skeleton

    made = ModelConfig(**SIZES | {"max_positions": 128, "dtype": "float32"} | config)
    return nnx.merge(skeleton(made)[0], parameters(made))


def tokenizer(folder: Path):
    if not (folder / "tokenizer.model").exists():
        texts = [words(400, seed) for seed in range(4)] + ["A B C D Question: Answer: 0123456789.,:\n\n"]
        train(texts, folder / "tokenizer.model", vocab_size=320, sample_bytes=1 << 16, seed=0, threads=1)
    return load_tokenizer(folder)


def published(folder: Path, **config) -> tuple[Path, Path]:
    """(workdir, published folder)."""
    workdir = folder / "workdir"
    workdir.mkdir()
    vocab = tokenizer(workdir).vocab_size
    made = ModelConfig(**SIZES | {"max_positions": 128, "dtype": "float32", "vocab_size": vocab} | config)
    write_workdir(workdir, made, parameters(made))
    to_published(workdir, folder / "published")
    return workdir, folder / "published"
