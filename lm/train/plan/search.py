"""Search the mesh, the remat policy and the slices of a batch that train a config fastest on a topology.

All combinations are ranked by a rough model; the best few are compiled, since only the compiler knows memory and time.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from lm.config import REMAT
from lm.errors import UserError
from lm.model import sizing
from lm.parallel.mesh import check_fit
from lm.progress import shown
from lm.train.chips import Chip, chip_of
from lm.train.describe import abstract_mesh, memories, step_flops
from lm.train.plan.compiled import devices_of
from lm.train.plan.plan import plan
from lm.train.step import model_config_of

MAX_TENSOR = 16
MAX_ROWS = 16  # of a device in a slice
UNSEEN = 1.15  # the compiler's peak over the memory that the rough model counts, at most, for configs of this project


class Guess(NamedTuple):
    """A combination as config keys, and the rough model's memory (bytes per device) and seconds."""

    keys: dict[str, int | str]
    memory: int
    seconds: float


def search(
    config: ml_collections.ConfigDict, topology: str, tries: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the plan of the best combination, with its "keys", and a line for each one that was compiled.

    Raises: UserError if none fits.
    """
    devices = devices_of(topology)
    chip = chip_of(devices[0])
    every = list(combinations(config, len(devices)))
    guesses = [guess(config, keys, chip) for keys in shown(every, "ranking", len(every))]
    fitting = sorted((one for one in guesses if one.memory <= chip.memory), key=lambda one: one.seconds)
    if not fitting:
        least = min(guesses, key=lambda one: one.memory, default=None)
        needs = f"the smallest needs about {least.memory / 2**30:.1f} GiB a device" if least else "no mesh divides its sizes"
        raise UserError(
            f"--plan=auto:{topology}: no mesh, remat policy and batch fits: {needs}, it has {chip.memory / 2**30:.1f}"
        )
    say(f"{len(every)} combinations, {len(fitting)} may fit; compiling the best {min(tries, len(fitting))} …")
    plans = []
    for one in fitting[:tries]:
        planned = plan(with_keys(config, one.keys), topology) | {"keys": one.keys}
        plans.append(planned)
        fits = f"estimated MFU {planned['mfu']:.1%}" if "mfu" in planned else "not timed" if planned["fits"] else "does not fit"
        say(f"{' '.join(f'--config.{key}={value}' for key, value in one.keys.items())}: {fits}")
    best = max((one for one in plans if one["fits"]), key=lambda one: one.get("mfu", 0), default=None)
    if best is None:
        raise UserError(f"--plan=auto:{topology}: none of the {len(plans)} compiled combinations fits; raise --plan_tries")
    tried = [{"keys": one["keys"], "fits": one["fits"], "mfu": one.get("mfu"), "memory": one["memory"]} for one in plans]
    return best, tried


def combinations(config: ml_collections.ConfigDict, devices: int) -> Iterator[dict[str, int | str]]:
    """Yield config keys of all combinations whose sizes divide."""
    model = model_config_of(config)
    experts = [n for n in _powers(devices) if model.moe.num_experts % n == 0] if any(k.moe for k in model.layer_kinds) else [1]
    policies = [name for name in REMAT if name != "none"]
    for expert, tensor in itertools.product(experts, _powers(min(devices, MAX_TENSOR))):
        if devices % (expert * tensor):
            continue
        fsdp = devices // (expert * tensor)
        ways = fsdp * expert
        for rows in _powers(MAX_ROWS):
            if config.batch_size % (ways * rows):
                continue
            accumulate = config.batch_size // (ways * rows)
            mesh = {"mesh.data": 1, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "mesh.expert": expert, "mesh.context": 1}
            try:
                sizes = {key.removeprefix("mesh."): size for key, size in mesh.items()}
                check_fit(abstract_mesh(sizes), model, config.batch_size, accumulate, config.sequence_length)
            except UserError:
                continue
            for remat in policies:
                yield mesh | {"accumulate": accumulate, "model.remat": remat}


def guess(config: ml_collections.ConfigDict, keys: dict[str, int | str], chip: Chip) -> Guess:
    """Return a combination with its memory and time by the rough model.

    Products at 90 % of the peak. Each slice gathers the weights twice in bfloat16 and scatters their gradients in float32; 80 %
    of the products hide it. Along tensor, each layer gathers its activations six times and scatters them four times; products
    hide two of the ten. Of what layers keep on the host, the forward pass hides what it sends in 0.3 of the products' time, and
    so does the backward pass. Nothing hides the moments, which travel both ways at the same time.
    """
    config = with_keys(config, keys)
    mesh, model = abstract_mesh(config.mesh), model_config_of(config)
    with jax.sharding.use_abstract_mesh(mesh):
        memory, host = memories(config, mesh)
        flops = step_flops(config, mesh)
    work = flops / mesh.size / (0.9 * chip.flops)
    parameters = sum(sizing.parameters(model)["total"].values()) / (mesh.shape["tensor"] * mesh.shape["expert"])
    ring = 2 * chip.link
    weights = config.accumulate * parameters * 8 / ring if mesh.shape["fsdp"] > 1 else 0.0
    rows = config.batch_size * config.sequence_length / (mesh.size / mesh.shape["tensor"])
    summed = 8 * rows * model.embed_dim * 2 * model.num_layers / ring if mesh.shape["tensor"] > 1 else 0.0
    moved = config.accumulate * host["activations"] / chip.pcie  # each way; the other way it is in the other pass
    moved = host["optimizer"] / chip.pcie + 2 * max(0.0, moved - 0.3 * work)
    return Guess(keys, round(UNSEEN * sum(memory.values())), work + max(0.0, weights - 0.8 * work) + summed + moved)


def with_keys(config: ml_collections.ConfigDict, keys: dict[str, int | str]) -> ml_collections.ConfigDict:
    """Return a copy of a config with other values at dotted keys."""
    config = config.copy_and_resolve_references()
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    return config


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]
