"""Llama 3 8B (Grattafiori et al. 2024): its published shape, learning rate and 15 T tokens, in rows of 8,192."""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 900_000
    config.batch_size = 2048  # × 8192 tokens
    config.sequence_length = 8192
    config.accumulate = 8
    config.model.update(
        vocab_size=128_256,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14_336,
        max_positions=8192,
        rope=dict(theta=500_000.0),
        remat="attention",
        remat_matmuls_last=5,  # what 256 × v5e have room for
    )
    config.mesh.update(data=1, fsdp=-1)
    config.optimizer.update(learning_rate=3e-4, warmup=2000)
    config.data.max_valid_bytes = 10_000_000
    config.valid_every = config.checkpoint_every = 1000
    config.valid_batches = 16
    config.keep_every = 10_000
    return config
