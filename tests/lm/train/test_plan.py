"""`train.py --plan`: the training step as a TPU program, compiled on this CPU, and what is read from it."""

import json
import os
import subprocess
import sys

import pytest

from lm.train.chips import CHIPS
from lm.train.plan.estimate import KERNEL_SHARE, estimate
from lm.train.plan.network import Collective, of_program
from lm.train.plan.program import Program, bytes_of
from tests.tpu import needs_libtpu
from tests.verbs import runs

# As XLA prints it: a loop of four trips (its counter goes by two), a gather that 3,000 cycles hide in part, and a plain sum.
TEXT = """
%body (p: (u32[], f32[8])) -> (u32[], f32[8]) {
  %p = (u32[], f32[8]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %one = u32[] constant(1)
  %i1 = u32[] add(%i, %one)
  %i2 = u32[] add(%i1, %one)
  %work = f32[8] fusion(%x), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"500"}
  ROOT %out = (u32[], f32[8]) tuple(%i2, %work)
}

%condition (p: (u32[], f32[8])) -> pred[] {
  %p = (u32[], f32[8]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %end = u32[] constant(8)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  %all-gather-start.1 = (bf16[4,128], bf16[16,128]) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={0}
  %first = f32[8] fusion(%a), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"3000"}
  %all-gather-done.1 = bf16[16,128] all-gather-done(%all-gather-start.1)
  %splash_mha_fwd.1 = bf16[1,1,1024,128] custom-call(%first), kernel_metadata={
"x": 1
}}, metadata={op_name="jit(step)/splash_B1_H1_T1024_K128_V128_W0/pallas_call"}
  %start = (u32[], f32[8]) tuple(%a, %first)
  %loop = (u32[], f32[8]) while(%start), condition=%condition, body=%body
  ROOT %sum = f32[8] all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


# A slice that goes to the host, one that comes from it at the same time, and a copy within the chip.
TRANSFERS = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  %near-start = (f32[1024,1024]{1,0:T(8,128)S(1)}, f32[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %near-done = f32[1024,1024]{1,0:T(8,128)S(1)} copy-done(%near-start)
  %dynamic-update-slice-start.1 = ((f32[4,1024,1024]{2,1,0:T(8,128)S(5)}, f32[1,1024,1024]{2,1,0:T(8,128)}, s32[]{:T(128)}), f32[4,1024,1024]{2,1,0:T(8,128)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%b, %a, %i)
  %copy-start.1 = (f32[1024,1024]{1,0:T(8,128)}, f32[1024,1024]{1,0:T(8,128)S(5)}, u32[]{:S(2)}) copy-start(%c)
  %work = f32[8] fusion(%a), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"15000"}
  %copy-done.1 = f32[1024,1024]{1,0:T(8,128)} copy-done(%copy-start.1)
  %dynamic-update-slice-done.1 = f32[4,1024,1024]{2,1,0:T(8,128)S(5)} dynamic-update-slice-done(%dynamic-update-slice-start.1)
  ROOT %copy-start.2 = (f32[1024,1024]{1,0:T(8,128)S(5)}, f32[1024,1024]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%c)
}
"""  # noqa: E501


GROUPED = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %rows = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  %weights = bf16[4,256,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %more = bf16[512,128]{1,0:T(8,128)(2,1)} parameter(2)
  %ragged-dot-metadata.1 = (s32[5]{0:T(128)}, s32[163]{0:T(256)}) custom-call(%sizes), custom_call_target="tpu_custom_call"
  %ragged-dot-none.1 = f32[512,128]{1,0:T(8,128)} custom-call(%m, %rows, %weights), custom_call_target="tpu_custom_call"
  ROOT %ragged-dot-none.2 = f32[4,256,128]{2,1,0} custom-call(%m, %rows, %more), custom_call_target="tpu_custom_call"
}
"""


PAGES = """
ENTRY %main (a: f32[8]) -> f32[8] {
  %q = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ragged_paged_attention_kernel.1 = bf16[32,8,128]{2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[32]{0}, bf16[32,8,128]{2,1,0}, bf16[1024,128,4,128]{3,2,1,0}}, metadata={op_name="jit(f)/ragged_T32_H8_S32_P8192/pallas_call"}
}
"""  # noqa: E501


class OneSecondEach:
    """A network on which every collective takes a fixed time."""

    def __init__(self, seconds):
        self._seconds = seconds

    def collective(self, one, kind):
        return Collective(kind, bytes_of(one.shape), self._seconds, frozenset({"0+"}))


def test_loops_count_by_their_trips():
    program = Program(TEXT)
    assert [(times, name) for times, name, _ in program.schedule()] == [(1, "%main"), (4, "%body")]
    assert program.cycles() == 3000 + 4 * 500
    computed = Program(TEXT.replace("constant(8)", "get-tuple-element(%p), index=2"))  # further rounds of experts
    assert computed.cycles() == 3000


def test_products_by_expert_count_by_their_rows():
    found = estimate(Program(GROUPED), OneSecondEach(0), CHIPS["TPU v5"])
    assert found.kernel_flops == 2 * 2 * 512 * 256 * 128


def test_attention_to_pages_reads_a_full_cache():
    chip = CHIPS["TPU v5 lite"]
    found = estimate(Program(PAGES), OneSecondEach(0), chip)
    keys = 1024 * 128 // 32  # of each of the 32 sequences, which could have 8,192
    assert found.kernel_flops == 32 * 8 * keys * 2 * (128 + 128)
    assert found.kernels == pytest.approx(1024 * 128 * 4 * 128 * 2 / chip.hbm)


def test_what_work_hides_costs_nothing_and_the_rest_does():
    chip = CHIPS["TPU v5 lite"]
    hidden = 3000 / chip.hertz
    found = estimate(Program(TEXT), OneSecondEach(hidden * 1.5), chip)
    assert found.compute == pytest.approx(5000 / chip.hertz)
    flops = 3 * 512 * 512 * 2 * (128 + 128)  # three of four blocks of 512 are seen
    assert found.kernels == pytest.approx(flops / (KERNEL_SHARE * chip.flops))
    assert found.sent["all-gather"].exposed == pytest.approx(0.5 * hidden) and found.sent["all-gather"].in_background == 1
    assert found.sent["all-reduce"].exposed == pytest.approx(1.5 * hidden)
    assert found.seconds == pytest.approx(found.compute + found.kernels + 2 * hidden)


def test_transfers_to_and_from_the_host_run_at_the_same_time():
    chip = CHIPS["TPU v5 lite"]
    found = estimate(Program(TRANSFERS), OneSecondEach(1.0), chip)
    size, hidden = 4 * 1024 * 1024, 15_000 / chip.hertz
    out, back = found.sent["to host"], found.sent["from host"]
    assert (out.count, out.bytes, back.count, back.bytes) == (2, 2 * size, 1, size)
    assert back.seconds == pytest.approx(size / chip.pcie) and out.seconds == pytest.approx(2 * size / chip.pcie)
    # Both wait for what the work does not hide, but only once; the last one runs on.
    assert back.exposed == pytest.approx(size / chip.pcie - hidden) and out.exposed == 0
    assert found.seconds == pytest.approx(size / chip.pcie)


def test_the_end_of_a_collective_is_not_another_one():
    program = Program(TEXT)
    kinds = [of_program(program.computations, one) for one in program.computations["%main"]]
    assert [kind for found in kinds if found for kind in found[1:]] == ["all-gather", "all-reduce"]


def plan(*flags, folder):
    environment = {**os.environ, "XLA_FLAGS": "", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "train.py", f"--workdir={folder}", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_topology_that_is_no_topology_is_one_line(tmp_path):
    done = runs.run([sys.executable, "train.py", f"--workdir={tmp_path}", "--config=configs/train/1b.py", "--plan=v5e"])
    assert done.returncode == 2 and "KIND:SHAPE" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_libtpu
def test_1b_on_a_pod_slice(tmp_path):
    done = plan("--config=configs/train/1b.py", "--plan=v5e:4x4", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["devices"] == 16 and found["fits"] and "fits: " in done.stdout
    # Parameters and two moments in float32, split over all chips.
    memory = found["memory"]
    assert memory["parameters"] + memory["optimizer"] == pytest.approx(12 * found["parameters"] / 16, rel=0.02)
    assert memory["peak"] < memory["limit"] == CHIPS["TPU v5 lite"].memory
    assert found["mfu_without_collectives"] >= 0.55
    layer = 4 * 2048 * 64 * (32 + 8) + 3 * 2048 * 8192 * 2  # bytes of a layer's matrices in bfloat16
    assert found["collectives"]["all-gather"]["largest"] <= layer


@pytest.mark.slow
@needs_libtpu
def test_the_search_finds_slices_that_fit(tmp_path):
    flags = ["--config.batch_size=64", "--config.model.num_layers=4", "--plan_tries=1"]
    done = plan("--config=configs/train/1b.py", "--plan=auto:v5e:2x2", *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] and found["tried"][0]["keys"] == found["keys"]
    assert f"--config.accumulate={found['accumulate']}" in done.stdout
