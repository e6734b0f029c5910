"""A 1.2 B model with the shape of Llama 3.2 1B, for a pod slice: parameters split over all chips, Chinchilla-optimal tokens."""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 48_000
    config.batch_size = 256  # × 2048 tokens
    config.sequence_length = 2048
    config.model.update(
        vocab_size=32_768,
        num_layers=16,
        embed_dim=2048,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=8192,
        rope=dict(theta=500_000.0),
        remat="matmuls",
    )
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.accumulate = 4
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup = 1000
    config.optimizer.schedule = "wsd"
    config.data.max_valid_bytes = 10_000_000
    config.valid_every = 1000
    config.valid_batches = 16
    config.checkpoint_every = 1000
    config.keep_every = 10_000
    return config
