"""Whether this process is one of several of a job, and the start of all of them; JAX loads only where it must."""

import os
from collections.abc import Callable

# What marks a process as one of several: our own variables, or a cluster that JAX knows how to read.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")


def several() -> bool:
    """Return whether this process is one of several of a job."""
    # On a machine without TPUs an installed libtpu makes JAX put a warning into this variable.
    tpu_workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name and " " not in name]
    return any(os.environ.get(name) for name in VARIABLES) or len(tpu_workers) > 1


def join(check: Callable[[], None], trains: bool = True) -> None:
    """Call `check`, and join the other processes of this job if there are any (lm.parallel.hosts.start).

    A process by itself checks before JAX loads, so that its error comes at once. Of several, process 0 checks for all after
    they have met: all end with its line, and only process 0 needs the input.
    """
    if not several():
        check()
    from lm.parallel import hosts

    hosts.start(trains)
    if several():
        hosts.from_first(check)
