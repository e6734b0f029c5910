"""Tiny models of the transformers library with random weights and every feature of their family on.

Windows and original contexts are shorter than LENGTH, and layers are of more than one kind where the family has several.
"""

import copy
import functools
import json

import numpy as np

from tests.lm.convert.peer_configs import COMMON, PEERS, VOCAB

LENGTH = 48  # tokens of the longest test sequence
COUNTS_PADDING = ("llama4",)
LAST_NORMS = ("model.norm.weight", "transformer.ln_f.weight", "model.embedding_norm.weight", "model.final_layernorm.weight")


def peer_config(name: str):
    import transformers

    kind, keys = PEERS[name]
    if kind == "GPT2":
        renamed = dict(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head")
        renamed |= dict(max_position_embeddings="n_positions", intermediate_size=None, num_key_value_heads=None)
        common = {renamed.get(key, key): value for key, value in COMMON.items() if renamed.get(key, key)}
    else:
        common = COMMON
    return getattr(transformers, f"{kind}Config")(**copy.deepcopy({**common, **keys}))  # some write into what they get


@functools.cache
def peer(name: str):
    """The model, in float32 and evaluation, with plain attention; shared, so leave it as it is."""
    import torch
    import transformers

    torch.set_num_threads(1)  # threads would cost these sizes twenty times the work
    torch.manual_seed(0)  # for what keeps the library's values, as the decays of states: drawn, and only shifted below
    model = transformers.AutoModelForCausalLM.from_config(peer_config(name), attn_implementation="eager").float().eval()
    tied = model.config.tie_word_embeddings
    generator = torch.Generator().manual_seed(0)
    for path, x in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            if path.endswith("e_score_correction_bias"):
                x.copy_(0.2 * noise)
            elif path.endswith("inv_freq") or ".attn.bias" in path or x.ndim == 0:
                continue
            elif x.ndim == 1:
                # Norms stay near the scale they have: weights of 1, or of 0 where 1 is added.
                x.add_(0.3 * noise)
                if tied and path in LAST_NORMS:
                    x.add_(1.5)
            elif "embed" in path or "wte" in path or "wpe" in path:
                # Tied ones are small, or a token's own embedding would have it predict itself for ever.
                x.copy_(noise * 0.4 / x.shape[1] ** 0.5 if tied else noise)
            else:
                inputs = x.shape[0] if kind_of(name) == "GPT2" else x.shape[-1]
                x.copy_(noise * 1.5 / inputs**0.5)
    return model


def kind_of(name: str) -> str:
    return PEERS[name][0]


def saved(model, folder) -> tuple[dict, dict[str, np.ndarray]]:
    """The model's checkpoint as the library writes it: config.json's content, and the tensors by name."""
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def batch(name: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, whether they are real, and their positions, [3, LENGTH]; two rows are padded on the left.

    There is none where transformers lets biases at padding into the convolution, or counts it among the positions that scale
    queries.
    """
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, VOCAB, (3, LENGTH))
    real = np.arange(LENGTH) >= np.array([[0], [17], [5]]) * (name not in ("lfm2-biases", *COUNTS_PADDING))
    return np.where(real, tokens, 0), real, np.maximum(0, np.cumsum(real, 1) - 1)
