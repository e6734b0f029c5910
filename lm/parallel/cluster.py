"""Detect a multi-process job without loading JAX."""

import functools
import importlib.util
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from lm.errors import UserError

# Variables that mark a multi-process job: ours, or those of a cluster that JAX detects.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "MEGASCALE_COORDINATOR_ADDRESS")
PCI, GOOGLE = Path("/sys/bus/pci/devices"), "0x1ae0"
SECONDS = 10  # to answer a question about this VM


def several() -> bool:
    """Return whether this process belongs to a job of several processes.

    Raises UserError if this is a Cloud TPU VM and the metadata server does not answer.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return True
    # On a machine without TPUs, if libtpu is installed, JAX writes a warning into this variable.
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if names and " " not in names:
        return len(names.split(",")) > 1
    return _tpu_hosts() > 1


@functools.cache
def _tpu_hosts() -> int:
    """Return the number of hosts of the Cloud TPU that this VM belongs to, over all slices; 1 on other machines.

    On Google Compute Engine no variable says so. JAX too asks the metadata server, unless TPU_SKIP_MDS_QUERY is set.
    """
    skipped = os.environ.get("TPU_SKIP_MDS_QUERY") or importlib.util.find_spec("libtpu") is None
    if skipped or all(path.read_text().strip() != GOOGLE for path in PCI.glob("*/vendor")):
        return 1
    hosts = _metadata("worker-network-endpoints").count(",") + 1
    slices = re.search(r"MEGASCALE_NUM_SLICES\W+(\d+)", _metadata("tpu-env"))
    return hosts * (int(slices[1]) if slices else 1)


def _metadata(name: str) -> str:
    """Return an attribute of this VM, "" if it has none."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    try:
        request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise UserError(f"{address}: {error}; set TPU_SKIP_MDS_QUERY=1 if this machine trains alone") from None
    except OSError as error:
        raise UserError(f"{address}: {error}; set TPU_SKIP_MDS_QUERY=1 if this machine trains alone") from None
