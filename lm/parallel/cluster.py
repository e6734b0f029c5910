"""Detect a multi-process job without loading JAX."""

import os

# Variables that mark a multi-process job: ours, or those of a cluster that JAX detects.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")


def several() -> bool:
    """Return whether this process belongs to a job of several processes."""
    # On a machine without TPUs, if libtpu is installed, JAX writes a warning into this variable.
    tpu_workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name and " " not in name]
    return any(os.environ.get(name) for name in VARIABLES) or len(tpu_workers) > 1
