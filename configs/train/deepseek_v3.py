"""DeepSeek-V3 (2024): latent attention, 256 experts in 8 groups balanced by a bias, a shared expert, multi-token prediction.

671 B parameters, 37 B active per token, 14.8 T tokens in rows of 4,096. The published model was then extended to 128 K
positions with YaRN (model.rope with scaling="yarn", factor=40, original_positions=4096, mscale=mscale_all_dim=1) and trained a
little more.
"""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 235_000
    config.batch_size = 15_360  # × 4096 tokens
    config.sequence_length = 4096
    config.accumulate = 30
    config.model.update(
        vocab_size=129_280,
        num_layers=61,
        embed_dim=7168,
        num_heads=128,
        num_kv_heads=128,
        head_dim=128,
        mlp_dim=18_432,
        mla=dict(kv_rank=512, query_rank=1536, rope_head_dim=64, value_head_dim=128),
        max_positions=4096,
        rope=dict(theta=10_000.0, interleaved=True),
        norm_eps=1e-6,
        mlp_pattern=("dense",) * 3 + ("moe",) * 58,
        moe=dict(
            num_experts=256,
            top_k=8,
            expert_dim=2048,
            shared_dim=2048,
            scores="sigmoid",
            weight_scale=2.5,
            num_groups=8,
            top_groups=4,
            group_score="top2",
            balance_bias=True,
            bias_rate=1e-3,
            balance_loss=1e-4,
        ),
        mtp_depth=1,
        remat="full",
    )
    config.mesh.update(data=1, fsdp=-1, expert=8)
    config.optimizer.update(learning_rate=2.2e-4, warmup=2000, mtp_loss=0.3)
    config.data.max_valid_bytes = 10_000_000
    config.valid_every = config.checkpoint_every = 1000
    config.keep_every = 10_000
    return config
