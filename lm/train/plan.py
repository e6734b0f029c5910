"""Compile the real training step for a machine that is not here, and say what it would need.

    JAX_PLATFORMS=cpu python -m lm.train.plan --config=configs/train/1b.py --topology=v5e:4x4 [--config.KEY=VALUE …]

Needs `libtpu` (requirements-tpu.txt), whose compiler runs on any CPU; no TPU is touched. The program is the one that
train.py runs: same step, same sharding rules, same donation.
"""

import json
import re
import sys
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from lm.config import flops_per_token
from lm.parallel.mesh import check_fit, make_mesh, spec
from lm.train.step import abstract_state, make_trainer, model_config_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")


def compile_step(config, devices):
    """The compiled train step of a resolved config for these devices (real ones, or a topology's).

    Returns: (jax.stages.Compiled, number of parameters).
    """
    mesh = make_mesh(config.mesh, devices)
    check_fit(mesh, model_config_of(config), config.batch_size, config.accumulate)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = abstract_state(trainer, mesh)
        rows = NamedSharding(mesh, spec("batch", "length"))
        shape = (config.batch_size, config.sequence_length)
        dtypes = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32) | {"weights": jnp.float32}
        batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in dtypes.items()}
        compiled = jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()
    return compiled, sum(x.size for x in jax.tree.leaves(state.params))


def plan(config, topology: str) -> dict:
    """Compiles for a TPU topology such as "v5e:4x4" and reports sizes in GiB a chip and FLOPs a step."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    begin = time.perf_counter()
    compiled, parameters = compile_step(config, devices)
    memory, gib = compiled.memory_analysis(), 2**30
    text = compiled.as_text()
    tokens = config.batch_size * config.sequence_length
    return {
        "topology": topology, "devices": len(devices), "device_kind": devices[0].device_kind, "parameters": parameters,
        "compile_seconds": time.perf_counter() - begin,
        "state_gib": memory.argument_size_in_bytes / gib, "temporary_gib": memory.temp_size_in_bytes / gib,
        "tokens_per_step": tokens,
        "flops_per_step": tokens * flops_per_token(model_config_of(config), parameters, config.sequence_length),
        "collectives": {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES},
    }  # fmt: skip


def main() -> None:
    from absl import flags

    from lm import cli

    flags.DEFINE_string("topology", "v5e:4x4", "TPU topology, KIND:SHAPE.")
    cli.run(lambda config, _: print(json.dumps(plan(config, flags.FLAGS.topology), indent=1)), __doc__, needs_workdir=False)


if __name__ == "__main__":
    sys.exit(main())
