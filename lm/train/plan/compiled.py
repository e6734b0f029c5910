"""The training step of a config, compiled for devices that need not be attached."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.experimental import topologies

from lm.errors import UserError
from lm.parallel.mesh import check_fit, make_mesh
from lm.train.describe import abstract_batch, bytes_per_device
from lm.train.step import abstract_state, compiler_options, make_trainer, model_config_of


class DoesNotFit(Exception):
    """The program needs more memory than a device has. needed: bytes, as the compiler says."""

    def __init__(self, needed: int):
        super().__init__(f"needs {needed} bytes")
        self.needed = needed


class Step(NamedTuple):
    """state: bytes per device of "parameters" and of the "optimizer"'s moments. text: as the compiler printed the program."""

    compiled: jax.stages.Compiled
    mesh: jax.sharding.Mesh
    state: dict[str, int]
    text: str


def devices_of(topology: str) -> list[jax.Device]:
    """Return the devices of KIND:SHAPE or KIND:SHAPE*SLICES, such as v5e:16x16 or v5p:4x4x4*2. Raises UserError."""
    name, _, slices = topology.partition("*")
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+)*", name) or not re.fullmatch(r"\d*", slices):
        raise UserError(f"--plan={topology}: write KIND:SHAPE, such as v5e:16x16 or v5p:4x4x8, with *2 for two slices")
    options = {"num_slices": int(slices)} if slices else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # JAX raises RuntimeError without libtpu, others for shapes that no slice has
        if "TPU support not installed" in str(error) or "libtpu" in str(error):
            cure = "--plan needs the TPU compiler, which runs on any CPU: pip install libtpu (or pip install -e '.[tpu]')"
            raise UserError(cure) from None
        lines = str(error).strip().splitlines()
        raise UserError(f"--plan={topology}: no such topology ({lines[0] if lines else type(error).__name__})") from None


def compile_step(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> Step:
    """Compile the train step of a resolved config for these devices (real, or of a topology).

    It is the program of train.py: same step, same sharding, same donation, same compiler options.
    Raises: DoesNotFit; UserError for a config that does not fit the mesh.
    """
    mesh = make_mesh(config.mesh, devices)
    check_fit(mesh, model_config_of(config), config.batch_size, max(1, config.accumulate), config.sequence_length)
    with jax.set_mesh(mesh):
        trainer = make_trainer(config)
        state = abstract_state(trainer, mesh)
        batch = abstract_batch(config, mesh, config.batch_size)
        lowered = jax.jit(trainer.step, donate_argnums=0).lower(state, batch)
        sizes = {"parameters": bytes_per_device(state.params), "optimizer": bytes_per_device(state.optimizer)}
        dump = devices[0].platform == "tpu" and config.model.moe.num_experts > 0
        compiled, text = compiled_with_text(lowered, compiler_options(devices[0]), dump)
    return Step(compiled, mesh, sizes, text)


def compiled_with_text(
    lowered: jax.stages.Lowered, options: dict[str, Any] | None = None, dump: bool = False
) -> tuple[jax.stages.Compiled, str]:
    """Compile a program. Return it, and how the compiler prints it.

    dump: for programs with experts, which JAX cannot print: XLA does not read their asynchronous products back.
    Raises: DoesNotFit.
    """
    folder = tempfile.TemporaryDirectory()
    if dump:
        options = {**(options or {}), "xla_dump_to": folder.name, "xla_dump_hlo_as_text": True}
    try:
        compiled = lowered.compile(compiler_options=options)
        return compiled, _dumped(Path(folder.name)) if dump else compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", str(error)) or re.search(
            r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error)
        )
        if needed is None:
            raise
        raise DoesNotFit(round(float(needed.group(1)) * 1024 ** ("KMGT".index(needed.group(2)) + 1))) from None
    finally:
        folder.cleanup()


def memory_of(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Return the bytes of a device that arguments and results of a program take, and those that it needs at most."""
    analysis: Any = compiled.memory_analysis()
    resident = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return resident, getattr(analysis, "peak_memory_in_bytes", 0) or resident + analysis.temp_size_in_bytes


def _dumped(folder: Path) -> str:
    """Return the program as libtpu has written it after its last pass, which adds the estimates."""
    return max(folder.glob("*jit_*.after_codegen.txt"), key=lambda path: path.stat().st_size).read_text()
