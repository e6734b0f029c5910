"""The model that answers from a store: its weights in 8 bits, and an adapter that was trained on the store."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx

from data.text.hf_tokenizer import has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.adapt import lora
from lm.adapt.quantize import quantize
from lm.adapt.rebuild import arrays_of, combined
from lm.align.reward_model import chat_template_of
from lm.bucket.store import is_url
from lm.config import Adapter, ModelConfig, Quantization
from lm.convert import base
from lm.errors import UserError
from lm.infer.engine.weights import free
from lm.infer.load import load_model
from lm.model.transformer import Transformer, skeleton

BITS = Quantization(bits=8)


class Speaker(NamedTuple):
    """config, params: with int8 weights and no adapter. template: Jinja, or None for the tokenizer's own. fingerprint: of the
    weight files."""

    config: ModelConfig
    params: nnx.State
    tokenizer: Tokenizer
    template: str | None
    fingerprint: str

    def model(self) -> Transformer:
        return nnx.merge(skeleton(self.config)[0], self.params)


def open_speaker(path: str) -> Speaker:
    """Return the model at a path of this machine: a workdir, a Hugging Face folder or a GGUF file.

    Its matrices are rounded to 8 bits with a scale for each output (lm/kernels/quantize.py); those of fewer bits stay. Products
    are computed in float32. Raises: UserError if there is no model, or it cannot read messages.
    """
    if is_url(path):
        raise UserError(f"--model={path}: lm.personal uses no network; copy the model to this machine and name its folder")
    if not Path(path).exists() or not has_tokenizer(Path(path)):
        problem = "no such file or folder" if not Path(path).exists() else "no tokenizer, so it cannot read messages"
        raise UserError(f"--model={path}: {problem}; name a workdir, a Hugging Face folder or a GGUF file")
    model = load_model(path, "float32")
    config, params = model.config, nnx.split(model)[1]
    if config.adapter.rank:
        config, params = lora.merge(config, params, dequantize=bool(config.quantization.bits))
    if not config.quantization.bits:
        whole = params
        config, params = quantize(config, params, BITS)
        free(whole, params)
    tokenizer = load_tokenizer(path)
    template = chat_template_of(path) if Path(path).is_dir() else None
    if (template or tokenizer.chat_template) is None:
        raise UserError(f"--model={path} has no chat template, so it cannot read messages: name an instruct model")
    found = base.reference(path, Path(path).absolute().parent)["fingerprint"]
    return Speaker(config, params, tokenizer, template, found or "")


def with_adapter(speaker: Speaker, adapter: Adapter, arrays: dict[str, jax.Array]) -> Transformer:
    """Return the speaker's model with an adapter. arrays: A and B by dotted name."""
    config = dataclasses.replace(speaker.config, adapter=adapter)
    return nnx.merge(skeleton(config)[0], combined(config, arrays_of(speaker.params) | arrays))
