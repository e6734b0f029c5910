"""Llama-like models of several sizes for a CPU, each on 20 tokens per parameter: configs/train/ladder.py:10m.

Vocabulary, batch and shape of the schedule are the same, so that losses can be compared between sizes.
"""

from configs.train import default
from lm.errors import UserError

SIZES = {
    "1m": dict(num_layers=3, embed_dim=128, num_heads=4, num_kv_heads=2, mlp_dim=384),
    "3m": dict(num_layers=5, embed_dim=192, num_heads=6, num_kv_heads=3, mlp_dim=576),
    "10m": dict(num_layers=7, embed_dim=320, num_heads=10, num_kv_heads=5, mlp_dim=960),
    "30m": dict(num_layers=9, embed_dim=512, num_heads=16, num_kv_heads=8, mlp_dim=1536),
}
STEPS = {"1m": 2600, "3m": 7000, "10m": 23_500, "30m": 73_000}


def get_config(size: str = ""):
    if size not in SIZES:
        raise UserError(f"configs/train/ladder.py:{size}: name a size after the colon, one of {', '.join(SIZES)}")
    config = default.get_config()
    config.steps = STEPS[size]
    config.batch_size = 32
    config.sequence_length = 256
    config.accumulate = 4
    config.model.update(vocab_size=4096, head_dim=32, tie_embeddings=True, scan_layers=False, **SIZES[size])
    config.optimizer.warmup = config.steps // 20
    return config
