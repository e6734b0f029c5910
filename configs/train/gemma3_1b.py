"""Gemma 3 1B (2025): five local layers per global one, sandwich norms, QK-norm, a tied head of 262 K tokens."""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 1_000_000
    config.batch_size = 512  # × 4096 tokens: 2 T in all, like the published model
    config.sequence_length = 4096
    config.accumulate = 4
    config.model.update(
        vocab_size=262_144,
        num_layers=26,
        embed_dim=1152,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        mlp_dim=6912,
        attention_pattern=("local",) * 5 + ("global",),
        window=512,
        local_rope_theta=10_000.0,
        rope=dict(theta=1e6),
        max_positions=32_768,
        qk_norm="head",
        query_scale=256**-0.5,
        norm_eps=1e-6,
        norm_position="sandwich",
        norm_plus_one=True,
        activation="gelu_tanh",
        embed_scale=1152**0.5,
        tie_embeddings=True,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.optimizer.update(learning_rate=1e-3, warmup=2000)
    config.data.max_valid_bytes = 10_000_000
    config.valid_every = config.checkpoint_every = 1000
    config.keep_every = 10_000
    return config
