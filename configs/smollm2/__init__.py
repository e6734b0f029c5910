"""What all training of SmolLM2-135M-Instruct on two cores shares: a LoRA adapter, and slices that fit into memory."""


def with_lora(config):
    """Return the config with an adapter of rank 16 on all matrices, and without recomputation."""
    config.accumulate = 2
    config.model.adapter.rank = 16
    config.model.adapter.alpha = 32
    config.model.remat = "none"
    return config
