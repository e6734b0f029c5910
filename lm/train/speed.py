"""The peak FLOP/s of the devices: the denominator of MFU."""

import functools
import time

import jax
import jax.numpy as jnp

from lm.kernels.matmul import product

# Dense bfloat16 peak, FLOP/s per chip, from the vendors' data sheets.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

FORMULA = "MFU = tokens/s × (6·N + 6·L·T·H·K) / peak; N active without the input embedding, attention counted causally"


def peak_flops(dtype) -> tuple[float, str]:
    """Return (FLOP/s of all devices of this job, source of the number). Devices not in PEAK are measured with one product."""
    device, count = jax.devices()[0], jax.device_count()
    for kind, peak in sorted(PEAK.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return peak * count, f"{kind} data sheet × {count}"
    # Fake CPU devices share one machine, so count it once per process and not per device.
    scale = jax.process_count() if device.platform == "cpu" else count
    return measured_peak(dtype) * scale, f"a measured 2048³ {jnp.dtype(dtype).name} product"


@functools.cache
def measured_peak(dtype, n: int = 2048) -> float:
    """Return the FLOP/s of an n×n×n product with operands in `dtype` on one device, the best of five."""
    local = jax.local_devices()[0]
    with jax.set_mesh(jax.sharding.Mesh([local], ("x",), axis_types=(jax.sharding.AxisType.Explicit,))):
        x = jnp.ones((n, n), dtype)
        run = jax.jit(lambda a: product("ij,jk->ik", a, a))
        run(x).block_until_ready()
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            run(x).block_until_ready()
            best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best
