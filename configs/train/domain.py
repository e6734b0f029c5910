"""Continue the pretraining of a model on the text of a domain, with replay of general text so that little is forgotten.

    python train.py --config=configs/train/domain.py --workdir=runs/law --config.init_from=MODEL \\
        --config.data.input='domain=FOLDER,general=FOLDER'

The report has bits per byte of each source before and after. Other sources of data.input are measured, and not trained on,
because data.weights does not name them. `:adapter` trains a LoRA adapter in place of all weights, which forgets less.
"""

from configs.train import default
from lm.errors import UserError


def get_config(kind: str = ""):
    if kind not in ("", "adapter"):
        raise UserError(f"configs/train/domain.py:{kind}: only domain.py and domain.py:adapter exist")
    config = default.get_config()
    default.adamw(config)
    config.data.weights = "domain=3,general=1"  # a quarter of replay (Ibrahim et al. 2024 try 1 to 50 %)
    config.data.valid_fraction = 0.03
    config.data.max_valid_bytes = 400_000
    config.steps = 40
    config.batch_size = 8
    config.sequence_length = 512
    # Warmed up again, to a rate far below that of pretraining, since a small corpus needs few steps.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 10
    config.optimizer.weight_decay = 0.0
    config.valid_first = True
    config.valid_every = 0
    config.samples = ()
    if kind == "adapter":
        config.model.adapter.rank = 16
        config.model.adapter.alpha = 32.0
        config.model.adapter.targets = ".*"
        config.optimizer.learning_rate = 1e-3
    return config
