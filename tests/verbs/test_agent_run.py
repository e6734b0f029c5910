"""align.py on an environment, as a user runs configs/align/agent.py: imitation, and rewards; two processes as one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.verbs import runs
from tests.verbs.test_align import measured
from tests.verbs.test_hosts import ends, start_both

STEPS = 4
SETTINGS = {
    "steps": STEPS,
    "batch_size": 8,
    "checkpoint_every": 2,
    "valid_every": 2,
    "valid_batches": 1,
    "samples_every": 2,
    "num_samples": 2,
    "data.max_examples": 40,
    "data.max_valid_examples": 8,
    "sequence_length": 256,
    "rollout.max_prompt_tokens": 128,
    "rollout.max_new_tokens": 6,
    "rollout.max_turns": 3,
}
STAGES = {"sft": {}, "grpo": {"rl.group_size": 4, "rl.beta": 0.1, "optimizer.learning_rate": 1e-3}}


def command(stage: str, workdir: Path, start: Path) -> list[str]:
    keys = SETTINGS | STAGES[stage] | {"init_from": start}
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "align.py", f"--config=configs/align/agent.py:{stage}", f"--workdir={workdir}", *values]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one(stage, finished, tmp_path):
    """Both are killed and start again. The environments of process 0 answer for all."""
    one, two = tmp_path / "one", tmp_path / "two"
    done = runs.run(command(stage, one, finished))
    assert done.returncode == 0, done.stderr[-3000:]
    both = command(stage, two, finished)
    processes = start_both(both, tmp_path)
    assert runs.wait(processes[0], lambda: 2 in runs.steps_saved(two)), (tmp_path / "0").read_text()
    for process in processes:
        process.kill()
        process.wait()
    codes, said = ends(start_both(both, tmp_path), tmp_path)
    assert codes == [0, 0], said
    for ours, theirs in zip(measured(two), measured(one), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
