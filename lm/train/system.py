"""Measure the machine while a run trains: the metrics `system_…` of a training line.

    system_memory_gib              host memory of this process
    system_memory_percent          of the host's memory in use, by all processes
    system_cpu_percent             CPU time of this process; 100 is one core
    system_device_memory_gib       in use on the fullest device of this process, where JAX knows it (not on a CPU)
    system_device_memory_peak_gib  its highest value so far
    system_gpu_percent             mean share of time in which the NVIDIA GPUs of this process compute, with nvidia-ml-py

One measurement takes a fraction of a millisecond (docs/runs.md). Lines within EVERY seconds share one.
"""

import contextlib
import os
import time
from collections.abc import Callable

import jax
import psutil

EVERY = 1.0  # seconds
GIB = 2**30


class System:
    """Returns the measurements of now, or of at most EVERY seconds ago."""

    def __init__(self) -> None:
        self._process, self._gpus = psutil.Process(), _open_gpus()
        self._process.cpu_percent()  # the first call only sets the clock
        self._at, self._last = -EVERY, dict[str, float]()

    def __call__(self) -> dict[str, float]:
        now = time.monotonic()
        if now - self._at >= EVERY:
            self._at, self._last = now, self._measured()
        return self._last

    def _measured(self) -> dict[str, float]:
        found = {}
        with contextlib.suppress(psutil.Error, OSError):
            found["system_memory_gib"] = self._process.memory_info().rss / GIB
            found["system_memory_percent"] = psutil.virtual_memory().percent
            found["system_cpu_percent"] = self._process.cpu_percent()
        devices = [stats for device in jax.local_devices() if (stats := _memory(device))]
        if devices:
            found["system_device_memory_gib"] = max(stats["bytes_in_use"] for stats in devices) / GIB
            found["system_device_memory_peak_gib"] = max(stats["peak_bytes_in_use"] for stats in devices) / GIB
        if self._gpus:
            found |= self._gpus()
        return found


def _memory(device: jax.Device) -> dict[str, int] | None:
    """Return a device's memory statistics if it has those that are logged."""
    try:
        stats = device.memory_stats()
    except (RuntimeError, NotImplementedError):  # of a backend that has none
        return None
    return stats if stats and {"bytes_in_use", "peak_bytes_in_use"} <= stats.keys() else None


def _open_gpus() -> Callable[[], dict[str, float]] | None:
    """Return a function that measures the NVIDIA GPUs of this process, or None without GPUs or without nvidia-ml-py."""
    gpus = [device for device in jax.local_devices() if device.platform == "gpu"]
    if not gpus:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        handles = []
        for gpu in gpus:
            name = visible[gpu.local_hardware_id] if visible else str(gpu.local_hardware_id)
            by = pynvml.nvmlDeviceGetHandleByIndex if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID
            handles.append(by(int(name) if name.isdecimal() else name))
    except Exception:  # no library, no driver, or a GPU that it does not name: the run goes on without this metric
        return None

    def measure() -> dict[str, float]:
        try:
            shares = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles]
        except pynvml.NVMLError:
            return {}
        return {"system_gpu_percent": sum(shares) / len(shares)}

    return measure
