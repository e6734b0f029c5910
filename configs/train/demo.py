"""The model of `make demo`: 3 M parameters; beats a byte 3-gram after a few minutes on two cores, with or without AMX."""

from configs.train import default


def get_config():
    config = default.get_config()
    config.steps = 550
    config.batch_size = 32
    config.sequence_length = 128
    config.accumulate = 2
    config.data.max_bytes = 6_000_000
    config.data.max_valid_bytes = 200_000
    config.data.valid_fraction = 0.02
    config.model.update(vocab_size=3072, num_layers=4, embed_dim=192, num_heads=6, num_kv_heads=3, head_dim=32, mlp_dim=512)
    config.model.scan_layers = False
    config.optimizer.warmup = 10
    config.valid_every = 50
    config.checkpoint_every = 100
    return config
