"""Whether this process is one of several of a job. Does not load JAX."""

import os

# What marks a process as one of several: our own variables, or a cluster that JAX knows how to read.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")


def several() -> bool:
    """Return whether this process is one of several of a job."""
    # On a machine without TPUs an installed libtpu makes JAX put a warning into this variable.
    tpu_workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name and " " not in name]
    return any(os.environ.get(name) for name in VARIABLES) or len(tpu_workers) > 1
