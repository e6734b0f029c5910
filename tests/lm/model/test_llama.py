"""Our decoder is Llama's: the weights of a random `LlamaForCausalLM` give its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import ModelConfig
from lm.model.transformer import skeleton
from tests.lm.examples import parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = ModelConfig(
    vocab_size=97, num_layers=3, embed_dim=48, num_heads=6, num_kv_heads=2, mlp_dim=80, head_dim=16, rope_theta=500.0,
    norm_eps=1e-3, dtype="float32",
)  # fmt: skip


def copied(llama, config):
    """Our parameters with the weights of `llama`."""
    theirs = {name: tensor.detach().numpy() for name, tensor in llama.state_dict().items()}

    def stacked(name, shape, transposed=True):
        weights = [theirs[f"model.layers.{layer}.{name}.weight"] for layer in range(config.num_layers)]
        return np.stack([(w.T if transposed else w).reshape(shape) for w in weights])

    D, H, G, K, F = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim, config.mlp_dim
    params = jax.tree.map(lambda p: p, parameters(config))
    layers = params["layers"]
    for ours, values in (
        (params["embedding"], theirs["model.embed_tokens.weight"]),
        (params["norm"]["scale"], theirs["model.norm.weight"]),
        (layers["attention_norm"]["scale"], stacked("input_layernorm", (D,))),
        (layers["attention"]["query"], stacked("self_attn.q_proj", (D, H, K))),
        (layers["attention"]["key"], stacked("self_attn.k_proj", (D, G, K))),
        (layers["attention"]["value"], stacked("self_attn.v_proj", (D, G, K))),
        (layers["attention"]["output"], stacked("self_attn.o_proj", (H, K, D))),
        (layers["feed_forward_norm"]["scale"], stacked("post_attention_layernorm", (D,))),
        (layers["feed_forward"]["gate"], stacked("mlp.gate_proj", (D, F))),
        (layers["feed_forward"]["up"], stacked("mlp.up_proj", (D, F))),
        (layers["feed_forward"]["down"], stacked("mlp.down_proj", (F, D))),
    ):
        assert ours.get_value().shape == values.shape
        ours.set_value(jnp.asarray(values))
    if not config.tie_embeddings:
        params["head"].set_value(jnp.asarray(theirs["lm_head.weight"]))
    return params


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tied):
    config = ModelConfig(**{**vars(CONFIG), "tie_embeddings": tied})
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.embed_dim, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, head_dim=config.head_dim,
            num_key_value_heads=config.num_kv_heads, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
            tie_word_embeddings=tied, attention_bias=False, mlp_bias=False, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    assert llama.config.rope_parameters["rope_theta"] == config.rope_theta
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            if "norm" in name:  # a scale of ones would hide a missing one
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
        tokens = torch.randint(0, config.vocab_size, (2, 40))
        theirs = llama(tokens).logits.numpy()
    ours = nnx.merge(skeleton(config)[0], copied(llama, config))(tokens.numpy())
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
