"""The training step as a TPU program for several slices, compiled on this CPU."""

import json

import pytest

from tests.tpu import needs_libtpu, printed_by

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
@needs_libtpu
def test_between_two_slices_the_1b_step_only_sums_gradients():
    found = json.loads(printed_by(COMPILE).splitlines()[-1])
    assert found["between"] == ["ALL_REDUCE"]
    # Each slice is a partition of its own: what is left are groups of the 16 chips of one.
    groups = [[int(n) for n in group.strip("{}").split(",")] for found in found["groups"] for group in found.split("},{")]
    assert list(range(16)) in groups and max(map(max, groups)) == 15
