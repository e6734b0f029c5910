"""The training step as a TPU program for several slices, compiled on this CPU."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import importlib, json, re
from jax.experimental import topologies
from lm.train.plan.compiled import compile_step
config = importlib.import_module("configs.train.1b").get_config()
config.mesh.update(data=2, fsdp=16)
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
text = compile_step(config, devices).compiled.as_text()
groups = set(re.findall(r"replica_groups=([{}0-9,]+}})", text))
between = re.findall(r' send\\(.*_xla_megascale_transfer_type="(\\w+)"', text)
print(json.dumps({"groups": sorted(groups), "between": sorted(set(between))}))
"""


@pytest.mark.slow
def test_between_two_slices_the_1b_step_only_sums_gradients():
    if subprocess.run([sys.executable, "-c", "import libtpu"], capture_output=True).returncode:
        pytest.skip("libtpu is not installed: make test-slow installs it")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["between"] == ["ALL_REDUCE"]
    assert found["groups"] == ["{{" + ",".join(map(str, range(16))) + "}}"]  # the chips of one slice
