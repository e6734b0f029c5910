"""Programs for TPUs that need not be attached: libtpu compiles them on the CPU, in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make test-slow installs it"
)
# Several processes may load libtpu at a time, and none of them looks for a TPU.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def printed_by(program: str) -> str:
    """Return what a Python program prints where libtpu can be used; the test fails if the program fails."""
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
