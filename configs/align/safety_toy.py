"""The safety loop on the toy world, for the model of a million parameters that docs/align.md tells how to make."""

from configs.align import safety


def get_config():
    config = safety.get_config()
    config.sequence_length = 256
    config.rollout.max_new_tokens = 40
    config.valid_every = 0
    config.model.scan_layers = False
    config.model.remat = "none"
    config.preference.nll_weight = 1.0
    config.safety.keep_share = 0.35
    config.safety.sft.update(steps=250, batch_size=8, learning_rate=3e-4)
    config.safety.dpo.update(steps=60, batch_size=8, learning_rate=1e-5)
    return config
