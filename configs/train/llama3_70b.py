"""Llama 3 70B: like 8B, with its own shape and learning rate."""

from configs.train import llama3_8b


def get_config():
    config = llama3_8b.get_config()
    config.model.update(num_layers=80, embed_dim=8192, num_heads=64, mlp_dim=28_672, remat_matmuls_last=0)
    config.accumulate = 4
    config.optimizer.learning_rate = 1.5e-4
    return config
