"""Mixtral 8x7B (Jiang et al. 2024): every layer has 8 experts; a token uses 2.

Its shape is published, its training is not: the training settings are those of Llama 3.
"""

from configs.train import llama3_8b


def get_config():
    config = llama3_8b.get_config()
    config.model.update(
        vocab_size=32_000,
        max_positions=32_768,
        rope=dict(theta=1e6),
        mlp_pattern=("moe",),
        remat="full",
        remat_matmuls_last=0,
        moe=dict(num_experts=8, top_k=2, balance_loss=0.01),
    )
    config.mesh.expert = 8
    return config
