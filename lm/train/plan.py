"""Compile the training step for a TPU that is not attached, and print its memory, FLOPs and collectives.

    JAX_PLATFORMS=cpu python -m lm.train.plan --config=configs/train/1b.py --topology=v5e:4x4 [--config.KEY=VALUE …]

Needs `libtpu` (pip install -e '.[tpu]'), whose compiler runs on any CPU; no TPU is used. The program is that of train.py: same
step, same sharding rules, same donation.
"""

import json
import re
import sys
import time

import jax
from jax.experimental import topologies

from lm import sizing
from lm.parallel.mesh import check_fit, make_mesh
from lm.train.describe import abstract_batch
from lm.train.step import abstract_state, make_trainer, model_config_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")


def compile_step(config, devices) -> jax.stages.Compiled:
    """Return the compiled train step of a resolved config for these devices (real, or of a topology)."""
    mesh = make_mesh(config.mesh, devices)
    check_fit(mesh, model_config_of(config), config.batch_size, config.accumulate, config.sequence_length)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = abstract_state(trainer, mesh)
        batch = abstract_batch(config, mesh, config.batch_size)
        return jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()


def plan(config, topology: str) -> dict:
    """Compile for a TPU topology such as "v5e:4x4". Return sizes in GiB per chip, FLOPs per step and collectives."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    begin = time.perf_counter()
    compiled = compile_step(config, devices)
    model = model_config_of(config)
    memory, gib = compiled.memory_analysis(), 2**30
    tokens = config.batch_size * config.sequence_length
    return {
        "topology": topology,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "parameters": sum(sizing.parameters(model)["total"].values()),
        "compile_seconds": time.perf_counter() - begin,
        "state_gib": memory.argument_size_in_bytes / gib,
        "temporary_gib": memory.temp_size_in_bytes / gib,
        "tokens_per_step": tokens,
        "flops_per_step": tokens * sizing.flops_per_token(model, config.sequence_length),
        "collectives": collectives(compiled),
    }


def collectives(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """Return the number of collectives of each kind in the program, or None if jaxlib cannot print libtpu's program."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}


def main() -> None:
    from absl import flags

    from lm import cli

    flags.DEFINE_string("topology", "v5e:4x4", "TPU topology, KIND:SHAPE.")
    cli.run(lambda config, _: print(json.dumps(plan(config, flags.FLAGS.topology), indent=1)), __doc__, needs_workdir=False)


if __name__ == "__main__":
    sys.exit(main())
