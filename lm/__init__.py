"""lmcraft: data, training, alignment, evaluation and serving of language models in JAX.

>>> import lm
>>> model, tokenizer = lm.load("runs/demo")
>>> lm.generate(model, tokenizer, ["def "], max_new_tokens=64, temperature=0.8, top_p=0.95, seed=0)
>>> lm.chat(model, tokenizer, [{"role": "user", "content": "What is a cat?"}], max_new_tokens=64, temperature=0.7)
"""

import importlib.util
import os
import sys
from pathlib import Path

HUGE_PAGES, VERBS = "glibc.malloc.hugetlb=1", ("train.py", "align.py")  # the variable is read once, when a process starts
if sys.platform == "linux" and sys.argv[:1] and Path(sys.argv[0]).name in VERBS and "GLIBC_TUNABLES" not in os.environ:
    # Page faults of 4 KB take up to a tenth of a step. Started anew here, before anything else is imported.
    os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
if os.environ.get("NUMBA_CPU_NAME"):
    import lm.kernels.native.limit  # noqa: F401


def load(path, dtype: str | None = None):
    """Return (model, tokenizer) of a training run, which may be in a bucket; see lm.infer.load.load."""
    from lm.bucket.copies import local
    from lm.infer.load import load  # here, so that `import lm` does not import JAX

    return load(local(path), dtype)


def generate(model, tokenizer, prompts, *, max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0, seed=0, **options):
    """Return completions of prompts, or answers to conversations.

    temperature: 0 is greedy. top_p, top_k: sample from the likeliest tokens only; 1 and 0: from all. options: others of
    lm.infer.generate.generate, such as stream, which is called with each piece of text of a single prompt.
    """
    from lm.infer.generate import generate

    options |= dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    return generate(model, tokenizer, prompts, **options)


def chat(model, tokenizer, messages, *, max_new_tokens=64, temperature=1.0, top_p=1.0, top_k=0, seed=0, **options):
    """Return the assistant's next message of a conversation. The options are those of `generate`."""
    from lm.infer.generate import chat

    options |= dict(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    return chat(model, tokenizer, messages, **options)


def _import_data() -> None:
    """Import our package `data`, so that a later change of folder finds no other one.

    Raises ImportError, or ends `python -m lm.…` with exit code 2, if another module of that name comes first.
    """
    spec = importlib.util.find_spec("data")
    places = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
    if spec and Path(__file__).resolve().parents[1] / "data" not in places:
        other = spec.origin or str(places[0])
        line = f"lm needs its own package `data`, but `import data` finds {other}: rename it, or take its folder off sys.path"
        if sys.argv[:1] == ["-m"]:  # Python is still looking for the module to run
            print(line, file=sys.stderr)
            sys.exit(2)
        raise ImportError(line, name="data", path=other)
    if spec:  # not where lm.sandbox is used alone
        importlib.import_module("data")


_import_data()
