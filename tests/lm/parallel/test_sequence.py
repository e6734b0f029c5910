"""Between blocks, the devices of a tensor axis hold different tokens."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.model.transformer import skeleton
from lm.parallel.mesh import make_mesh, shardings
from lm.train.describe import abstract_batch, abstract_mesh, residuals
from lm.train.plan.compiled import compile_step
from lm.train.step import abstract_state, make_trainer, model_config_of
from tests.lm.examples import parameters, tiny_config
from tests.slow import all_but

LATENT = dict(num_kv_heads=4, mla=dict(kv_rank=8, query_rank=8, rope_head_dim=4, value_head_dim=8))
EXPERTS = dict(mlp_pattern=("moe",), moe=dict(num_experts=4, expert_dim=16, shared_dim=16))
ADAPTER = dict(adapter=dict(rank=2))


@pytest.mark.parametrize("model", [{}, LATENT, EXPERTS, ADAPTER], ids=["dense", "latent", "experts", "adapter"])
def test_all_that_layers_keep_is_split_over_tensor(model):
    config = tiny_config(remat="matmuls", scan_layers=True, **model)
    mesh = abstract_mesh({"data": 1, "tensor": 2})
    with jax.sharding.use_abstract_mesh(mesh):
        state = abstract_state(make_trainer(config), mesh)
        kinds = (nnx.LoRAParam,) if "adapter" in model else (nnx.Param,)
        kept = residuals(config, *nnx.split_state(state.params, kinds, ...), abstract_batch(config, mesh, config.batch_size))
    L, B, T = config.model.num_layers, config.batch_size, config.sequence_length
    of_layers = [x for x in kept if x.shape[:3] == (L, B, T) and jnp.issubdtype(x.dtype, jnp.floating)]
    assert (
        sum(x.shape[3:] == (config.model.embed_dim,) for x in of_layers) >= 2
    )  # a layer's input, and that of its second block
    assert all("tensor" in str(x.sharding.spec[2:]) for x in of_layers)


def test_blocks_end_in_a_reduce_scatter():
    config = tiny_config()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    program = compile_step(config, jax.devices()).compiled.as_text()
    rows = rf"f32\[\d+,{config.sequence_length},{config.model.embed_dim}\]"
    blocks = [line for line in program.splitlines() if re.search(r"op_name=\"[^\"]*/(attention|feed_forward)/", line)]
    assert not [line for line in blocks if re.search(rf"= {rows}\S* all-reduce", line)]
    assert sum(" reduce-scatter(" in line for line in blocks) >= 4  # two blocks, forward and backward


@pytest.mark.parametrize("T", all_but([1, 6], [1, 5, 6]))
def test_logits_of_any_length_as_on_one_device(T):
    """Lengths that the tensor axis does not divide are not split."""
    config = model_config_of(tiny_config(positions="learned", max_positions=8))
    tokens_BT = np.random.default_rng(0).integers(0, config.vocab_size, (2, T))
    graph, _ = skeleton(config)
    expected = jax.jit(lambda params: nnx.merge(graph, params)(tokens_BT))(parameters(config))
    mesh = make_mesh({"tensor": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        params = jax.device_put(parameters(config), shardings(skeleton(config)[1], mesh))
        logits = jax.jit(lambda params: nnx.merge(skeleton(config)[0], params)(tokens_BT))(params)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
