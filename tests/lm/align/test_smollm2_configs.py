"""The configs of SmolLM2: valid together, and the built-in task fits the rollouts."""

import importlib
import itertools
from types import SimpleNamespace

import pytest

from data.tasks import task
from lm.align import settings
from lm.align.rl.rewards import parse_rewards


@pytest.mark.parametrize("name", ("sft", "dpo", "grpo", "safety"))
def test_configs_of_training_are_valid(name):
    config = importlib.import_module(f"configs.smollm2.{name}").get_config()
    config.init_from, config.data.input = "smollm2", config.data.input or "builtin:preferred_style"
    settings.check(config)
    assert config.model.adapter.rank > 0 and (config.batch_size or 32) % config.accumulate == 0


def test_the_rewards_of_grpo_judge_its_task():
    config = importlib.import_module("configs.smollm2.grpo").get_config()
    rewards = parse_rewards(config.rewards)
    rows = list(itertools.islice(task(config.data.input.removeprefix("builtin:"), "train", 0), 8))
    columns = {name: [row[name] for row in rows] for name in ("instruction_id_list", "kwargs")}
    columns["rollouts"] = [SimpleNamespace(mask=[True])] * 8
    for function in rewards.functions:
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        assert function(prompts, [""] * 8, **columns) == [0.0] * 8
    assert config.rollout.max_prompt_tokens + config.rollout.max_new_tokens <= config.sequence_length + 1
