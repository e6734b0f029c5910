"""lmcraft: data, training, alignment, evaluation and serving of language models in JAX.

>>> import lm
>>> model, tokenizer = lm.load("runs/demo")
>>> lm.generate(model, tokenizer, ["def "], max_new_tokens=64, temperature=0.8, top_p=0.95, seed=0)
"""


def load(path, dtype: str | None = None):
    """Return (model, tokenizer) of a training run; see lm.infer.load.load."""
    from lm.infer.load import load  # here, so that `import lm` does not import JAX

    return load(path, dtype)


def generate(model, tokenizer, prompts, **options):
    """Return completions of prompts, or answers to conversations; see lm.infer.sampler.generate."""
    from lm.infer.sampler import generate

    return generate(model, tokenizer, prompts, **options)
