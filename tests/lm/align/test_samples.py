"""Samples of held-out tasks, which a run may have none of."""

from ml_collections import ConfigDict

from lm.align.rl.rewards import parse_rewards
from lm.align.validation import Samples


def test_no_samples_need_no_columns_of_rewards(tmp_path):
    tasks = [{"prompt": [{"role": "user", "content": "Say that the fox is red."}], "statement": "the fox is red"}]
    config = ConfigDict({"num_samples": 0, "seed": 0})
    samples = Samples(config, tmp_path, lambda params, tasks, seed: [*tasks], tasks, parse_rewards("style=1"))
    assert samples(3, {}) == [] and (tmp_path / "samples.jsonl").read_text() == ""
