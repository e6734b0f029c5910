"""Direct preference optimisation on pairs; --config.preference.loss=ipo and others select its variants."""

from configs.align import default


def get_config():
    config = default.get_config()
    config.method = "preference"
    return config
