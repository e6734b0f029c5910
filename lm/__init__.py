"""lmcraft: a language model's whole life in JAX.

>>> import lm
>>> model, tokenizer = lm.load("runs/demo")
>>> lm.generate(model, tokenizer, ["def "], max_new_tokens=64, temperature=0.8, top_p=0.95, seed=0)
"""


def load(path, dtype: str | None = None):
    """(model, tokenizer) of a training run; see lm.infer.load.load."""
    from lm.infer.load import load  # jax is imported when it is needed, not with the package

    return load(path, dtype)


def generate(model, tokenizer, prompts, **options):
    """Completions of prompts, and answers to conversations; see lm.infer.sampler.generate."""
    from lm.infer.sampler import generate

    return generate(model, tokenizer, prompts, **options)
