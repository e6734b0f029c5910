"""Stages of curation that need a model, for `data.recipe.run.prepare`. JAX is loaded when such a stage is used."""

import functools
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from data.recipe.batch import Batch, Columns
from data.recipe.stages import Stage
from lm.errors import UserError, after


def _perplexity(scorer_of: Callable, batch: Batch, options: Mapping[str, Any]) -> Columns:
    from lm.evals.documents import columns

    scorer = scorer_of(options["checkpoint"], options["content"], options["max_tokens"], options["batch"])
    return columns(scorer.scores(batch.texts))


@functools.lru_cache(maxsize=2)
def _scorer(checkpoint: str, content: str, max_tokens: int, batch: int):
    import jax

    from lm.evals.documents import Scorer
    from lm.infer.load import load

    if jax.default_backend() != "cpu" and multiprocessing.parent_process() is not None:
        raise UserError(
            "perplexity: several processes cannot share an accelerator; set --config.processes=1, or JAX_PLATFORMS=cpu"
        )
    scorer = Scorer(*load(checkpoint), max_tokens=max_tokens, batch=batch)
    if _content(checkpoint) != content:
        raise UserError(f"perplexity.checkpoint={checkpoint!r} has changed since the run began; run the same command again")
    return scorer


def _resolved(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with `content`, a digest of the checkpoint. Raises: UserError: it has no model or no tokenizer."""
    if not options["checkpoint"]:
        raise UserError(
            "perplexity.checkpoint names no model; name a workdir with a checkpoint, a Hugging Face folder or a GGUF file"
        )
    from lm.convert.source import open_source
    from lm.evals.documents import check

    checkpoint = options["checkpoint"]
    content = _content(checkpoint)
    check(open_source(checkpoint).config, options["max_tokens"], options["batch"])
    return {**options, "content": content}


def _content(checkpoint: str) -> str:
    """Return a digest of a model: its config, the weights of its newest checkpoint and of an adapter's base, its tokenizer."""
    from data.text.hf_tokenizer import has_tokenizer
    from data.text.tokenizer import load_tokenizer
    from lm.convert import base
    from lm.convert.published import is_published
    from lm.convert.source import open_source
    from lm.runs.checkpoint import newest

    path, step, below = Path(checkpoint), None, None
    with after("perplexity.checkpoint: "):
        config = open_source(path).config.to_dict()
        if not has_tokenizer(path):
            raise UserError(f"{path} has no tokenizer; put its files beside the model")
        tokenizer = load_tokenizer(path)
    if not is_published(path):
        checkpoints, step = newest(path)
        below = checkpoints.meta(step).get("base")
        checkpoints.close()
    weights = [base.fingerprint(path, step), below and below["fingerprint"]]
    return xxhash.xxh3_128_hexdigest(repr([sorted(config.items()), weights, tokenizer.fingerprint]).encode())


STAGES: Mapping[str, Stage] = {
    "perplexity": Stage(
        "lm.evals.curation",
        "_scorer",
        _perplexity,
        columns=("perplexity", "bits_per_byte", "perplexity_tokens"),
        resolve=_resolved,
    )
}
