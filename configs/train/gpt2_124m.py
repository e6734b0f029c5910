"""GPT-2 124M (Radford et al. 2019), on about as many tokens as in its authors' text."""

from configs.train import default


def get_config():
    config = default.get_config()
    default.adamw(config)
    config.steps = 20_000
    config.batch_size = 512  # × 1024 tokens
    config.sequence_length = 1024
    config.accumulate = 4
    config.model.update(
        vocab_size=50_257,
        num_layers=12,
        embed_dim=768,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        mlp_dim=3072,
        positions="learned",
        max_positions=1024,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=True,
    )
    config.mesh.data = -1
    config.optimizer.update(learning_rate=6e-4, warmup=1000)
    config.data.max_valid_bytes = 10_000_000
    config.valid_every = config.checkpoint_every = 1000
    return config
