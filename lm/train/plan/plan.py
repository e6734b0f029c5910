"""The plan of one config for one topology: `plan` returns plain numbers, as plan.json holds them."""

import dataclasses
import time
from typing import Any

import jax
import ml_collections

from lm.model import sizing
from lm.train.chips import chip_of
from lm.train.describe import memories
from lm.train.plan.compiled import DoesNotFit, compile_step, devices_of, memory_of
from lm.train.plan.estimate import KERNEL_SHARE, estimate
from lm.train.plan.network import WAYS, Network
from lm.train.plan.program import Program
from lm.train.step import model_config_of

EXPLAINED = (
    "An estimate, not a measurement: the cycles that XLA's TPU compiler expects for each fused operation, times the trips of "
    "its loop, over the clock; kernels of attention and of experts, for which it expects nothing, at "
    f"{KERNEL_SHARE:.0%} of the peak; and collectives and transfers to the host that no work hides, bytes over the links' "
    "bandwidth. Contention, stalls and the input pipeline are left out."
)


def plan(config: ml_collections.ConfigDict, topology: str) -> dict[str, Any]:
    """Compile the step of a resolved config for a topology. Return sizes in bytes per device, FLOPs per step and seconds.

    Raises: UserError for a topology that does not exist, or a config that its devices cannot be laid out for.
    """
    devices = devices_of(topology)
    chip, model = chip_of(devices[0]), model_config_of(config)
    tokens = config.batch_size * config.sequence_length
    begin = time.perf_counter()
    result = {
        "topology": topology,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "accumulate": config.accumulate,
        "remat": model.remat,
        "parameters": sum(sizing.parameters(model)["total"].values()),
        "tokens_per_step": tokens,
        "model_flops_per_step": tokens * sizing.flops_per_token(model, config.sequence_length),
    }
    try:
        step = compile_step(config, devices)
    except DoesNotFit as error:
        return result | {"fits": False, "memory": {"peak": error.needed, "limit": chip.memory}, "explained": EXPLAINED}
    resident, peak = memory_of(step.compiled)
    with jax.set_mesh(step.mesh):
        device, host = memories(config, step.mesh.abstract_mesh)
    activations = device["activations"]
    result |= {
        "mesh": {axis: size for axis, size in step.mesh.shape.items() if size > 1},
        "fits": peak <= chip.memory,
        "memory": {
            **step.state,
            "activations": activations,
            "temporaries": max(0, peak - resident - activations),
            "peak": peak,
            "limit": chip.memory,
            "host": {"all": _on_host(step.compiled.memory_analysis()), **host},
        },
        "compile_seconds": time.perf_counter() - begin,
        "explained": EXPLAINED,
    }
    program = Program(step.text)
    timed = estimate(program, Network(step.mesh, chip), chip)
    waits = sum(timed.sent[kind].exposed for kind in WAYS if kind in timed.sent)
    peak_flops, flops = chip.flops * len(devices), result["model_flops_per_step"]
    return result | {
        "seconds": {
            "step": timed.seconds,
            "compute": timed.compute,
            "kernels": timed.kernels,
            "exposed_collectives": timed.exposed - waits,
            "exposed_transfers": waits,
        },
        "cycles": timed.cycles,
        "kernel_flops": timed.kernel_flops,
        "collectives": {kind: dataclasses.asdict(sent) for kind, sent in timed.sent.items() if kind not in WAYS},
        "transfers": {kind: dataclasses.asdict(sent) for kind, sent in timed.sent.items() if kind in WAYS},
        "mfu": flops / peak_flops / timed.seconds,
        "mfu_without_collectives": flops / peak_flops / (timed.compute + timed.kernels),
        "tokens_per_second": tokens / timed.seconds,
    }


def _on_host(analysis: object) -> int:
    """Return the bytes of host memory that a compiled program needs for a device."""
    sizes = {kind: getattr(analysis, f"host_{kind}_size_in_bytes", 0) for kind in ("argument", "output", "alias", "temp")}
    return sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
