"""A small DeepSeek-V3 for a CPU: all of its architecture in 4 M parameters."""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 1000
    config.batch_size = 32
    config.sequence_length = 128
    config.accumulate = 4
    config.model.update(
        vocab_size=3072,
        num_layers=4,
        embed_dim=192,
        num_heads=6,
        num_kv_heads=6,
        head_dim=32,
        mlp_dim=512,
        mla=dict(kv_rank=64, query_rank=96, rope_head_dim=16, value_head_dim=32),
        rope=dict(interleaved=True),
        norm_eps=1e-6,
        mlp_pattern=("dense", "moe", "moe", "moe"),
        moe=dict(
            num_experts=8,
            top_k=2,
            expert_dim=96,
            shared_dim=96,
            scores="sigmoid",
            weight_scale=2.5,
            num_groups=4,
            top_groups=2,
            group_score="top2",
            balance_bias=True,
            balance_loss=1e-4,
        ),
        mtp_depth=1,
        scan_layers=False,
    )
    config.data.max_bytes = 6_000_000
    config.data.max_valid_bytes = 200_000
    config.data.valid_fraction = 0.02
    return config
