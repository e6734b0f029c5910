"""align.py on an environment, as a user runs configs/align/agent.py: imitation, and rewards; two processes as one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.verbs import runs
from tests.verbs.test_align import measured
from tests.verbs.test_hosts import killed_and_resumed

STEPS = 4
SETTINGS = {
    "steps": STEPS,
    "batch_size": 8,
    "checkpoint_every": 2,
    "valid_every": 2,
    "valid_batches": 8,  # all: two devices share rows, so their held-out batches are larger and fewer
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


REWARD = """
def letters(prompts, completions, **columns):
    return [len(set(text)) / 10 for text in completions]
"""  # the tiny model never ends a turn, so the environment itself rewards nothing


def command(stage: str, workdir: Path, start: Path) -> list[str]:
    keys = SETTINGS | STAGES[stage] | {"init_from": start}
    if stage == "grpo":
        file = workdir.with_name("reward.py")
        file.write_text(REWARD)
        keys["rewards"] = f"{file}:letters=1,environment=0"
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "align.py", f"--config=configs/align/agent.py:{stage}", f"--workdir={workdir}", *values]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_as_one(stage, finished, tmp_path):
    """Both are killed and start again. The environments of process 0 answer for all."""
    one, two = tmp_path / "one", tmp_path / "two"
    done = runs.run(command(stage, one, finished))
    assert done.returncode == 0, done.stderr[-3000:]
    killed_and_resumed(command(stage, two, finished), two, 2, tmp_path)
    assert any(line.get("grad_norm", 0) > 0 for line in measured(one))
    for ours, theirs in zip(measured(two), measured(one), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
