"""The peak FLOP/s of the devices: the denominator of MFU."""

import jax

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


def peak_flops() -> tuple[float, str] | None:
    """Return (bfloat16 FLOP/s of all devices of this job, source of the number); None for devices that are not in PEAK.

    A measured peak is no substitute: on a CPU it changes by a factor of two with what else runs.
    """
    device, count = jax.devices()[0], jax.device_count()
    for kind, peak in sorted(PEAK.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return peak * count, f"{kind} data sheet × {count}"
    return None


def mfu_formula() -> str | None:
    """Return how MFU is computed on these devices, in words; None if it is not."""
    return f"{FORMULA} = {known[0] / 1e12:.3g} TFLOP/s ({known[1]})" if (known := peak_flops()) else None
