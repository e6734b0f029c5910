"""Multi-host start, and what one host does while the others wait."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax

from lm.errors import UserError

# What marks a process as one of several: our own variables, or a cluster that JAX knows how to read.
CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")


def start() -> None:
    """Joins the other processes of this job, if there are any; call it before the first use of a device.

    On Slurm, Open MPI, and TPU pods JAX finds out by itself. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    # On a machine without TPUs an installed libtpu makes JAX put a warning into this variable.
    tpu_workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name and " " not in name]
    if not any(os.environ.get(name) for name in CLUSTER_VARIABLES) and len(tpu_workers) < 2:
        return

    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdecimal():
            raise UserError(f"{name}={text!r} is not a number: it counts the processes of this job, from 0")
        return int(text) if text is not None else None

    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"),
        shutdown_timeout_seconds=24 * 3600,  # so long may process 0 write its report while the others wait to leave
    )  # fmt: skip


def leave() -> None:
    """Waits until all processes are here and ends the job: none may take another's exit for a crash."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """True on the one process that writes logs, datasets and reports."""
    return jax.process_index() == 0


def wait_for(ready: Callable[[], Any | None]) -> Any:
    """Polls the shared file system until process 0 has made what `ready` looks for; if it dies, so do the others."""
    while (found := ready()) is None:
        time.sleep(0.2)
    return found
