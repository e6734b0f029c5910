"""A model of 0.8 M parameters that trains in a minute on any CPU, for experiments."""

from configs.train import default


def get_config():
    config = default.get_config()
    config.steps = 200
    config.batch_size = 16
    config.sequence_length = 128
    config.data.max_bytes = 10_000_000  # 200 steps read 1.5 MB; the run says what it leaves out
    config.data.max_valid_bytes = 100_000
    config.data.valid_fraction = 0.02
    config.model.update(vocab_size=2048, num_layers=2, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384)
    config.optimizer.warmup = 20
    config.valid_every = 50
    config.checkpoint_every = 50
    return config
