"""Evaluation: bits per byte of text, the likeliest of several answers, and generated answers with a checker."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tour.generate import generate
from tour.mesh import make_mesh
from tour.model import TINY, Batch, Config, Params, declare, init
from tour.pretrain import log_likelihoods, on_mesh
from tour.sft import rows

Check = Callable[[int, list[int]], bool]  # of (number of the prompt, tokens of the answer)
Item = tuple[list[int], list[list[int]]]  # a question and its possible answers, as tokens


def bits_per_byte(params: Params, config: Config, batches: list[Batch], text_bytes: int) -> float:
    """Return −Σ log₂ p of all tokens of some text, divided by its bytes. It does not depend on the tokenizer."""
    nats = -sum(float(jnp.sum(log_likelihoods(params, config, on_mesh(batch)))) for batch in batches)
    return nats / np.log(2) / text_bytes


def choice_scores(params: Params, config: Config, items: list[Item], length: int) -> list[np.ndarray]:
    """Return log p(answer | question) of all answers of each item (as for MMLU: Hendrycks et al. 2021)."""
    pairs = [(question, answer) for question, answers in items for answer in answers]
    padded = pairs + [pairs[0]] * (-len(pairs) % 32)  # so that all batches have one shape
    parts = [on_mesh(rows(padded[i : i + 32], length)) for i in range(0, len(padded), 32)]
    scores = np.concatenate([np.asarray(log_likelihoods(params, config, part)) for part in parts])[: len(pairs)]
    return np.split(scores, np.cumsum([len(answers) for _, answers in items])[:-1])


def mean_with_interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its 95 % interval: 1.96 · sample standard deviation / √n."""
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5)


def choice_accuracy(params: Params, config: Config, items: list[Item], right: list[int], length: int) -> tuple:
    """Return the share of items whose right answer is the likeliest, and its interval."""
    scores = choice_scores(params, config, items, length)
    return mean_with_interval([float(np.argmax(score) == i) for score, i in zip(scores, right)])


def generation_accuracy(params: Params, config: Config, prompts: list[list[int]], check: Check, how: dict) -> tuple:
    """Return the share of prompts whose answer, which generate(**how) gives, the checker accepts, and its interval."""
    answers = generate(params, config, prompts, **how)
    return mean_with_interval([float(check(i, answer)) for i, answer in enumerate(answers)])


if __name__ == "__main__":
    jax.set_mesh(make_mesh())
    items = [([1, 2], np.random.default_rng(n).integers(0, 256, (4, 3)).tolist()) for n in range(100)]
    mean, half = choice_accuracy(init(declare(TINY), 0), TINY, items, [0] * 100, length=8)
    print(f"a model that knows nothing: {mean:.2f} ± {half:.2f} of 100 questions with four answers")
