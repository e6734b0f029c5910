"""The training step as a TPU program, compiled on this CPU."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_1b_step_compiles_for_a_pod_slice_and_fits_its_memory():
    if subprocess.run([sys.executable, "-c", "import libtpu"], capture_output=True).returncode:
        pytest.skip("libtpu is not installed: make test-slow installs it")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-m", "lm.train.plan", "--config=configs/train/1b.py", "--topology=v5e:4x4"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout[done.stdout.index("{") :])
    assert plan["devices"] == 16
    assert 1.0e9 < plan["parameters"] < 1.3e9
    # Parameters and two moments in float32, split over all chips.
    assert plan["state_gib"] == pytest.approx(12 * plan["parameters"] / 16 / 2**30, rel=0.02)
    assert plan["state_gib"] + plan["temporary_gib"] < 16, "more than a v5e chip has"
    assert plan["collectives"]["all-gather"] > 0
