"""One knob: configs/train/dial.py:DEPTH, such as configs/train/dial.py:12. lm/train/dial.py chooses everything else."""

from configs.train import default
from lm.errors import UserError


def get_config(depth: str = "4"):
    if not depth.isdecimal() or int(depth) < 1:
        raise UserError(f"configs/train/dial.py:{depth}: give a number of layers after the colon, such as dial.py:12")
    config = default.get_config()
    config.dial.depth = int(depth)
    return config
