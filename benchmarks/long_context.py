"""Memory of a chip in a training step of long sequences, split over the context axis: compiled for TPUs that are not attached.

    JAX_PLATFORMS=cpu python -m benchmarks.long_context [--cases=131072:v5e:4x4,1048576:v5p:2x2x4] [--across=ring]

The model is that of configs/train/1b.py with one sequence a step. Prints one line of JSON a case. Needs libtpu, as
train.py --plan does; a case takes some minutes of one core.
"""

import argparse
import importlib
import json

from lm.config import ACROSS
from lm.train.plan.plan import plan

CASES = "131072:v5e:4x4,262144:v5e:4x4,1048576:v5p:2x2x4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=CASES, help="LENGTH:TOPOLOGY, separated by commas")
    parser.add_argument("--across", default="ring", choices=ACROSS)
    options = parser.parse_args()
    for case in options.cases.split(","):
        length, topology = case.split(":", 1)
        found = plan(config_of(int(length), options.across), topology)
        keys = ("topology", "devices", "fits", "memory", "compile_seconds")
        print(json.dumps({"length": int(length)} | {key: found.get(key) for key in keys}), flush=True)


def config_of(length: int, across: str):
    """Return the config of a run whose whole mesh splits one sequence of this length."""
    config = importlib.import_module("configs.train.1b").get_config()
    config.batch_size, config.accumulate, config.sequence_length = 1, 1, length
    config.model.update(max_positions=length, remat="full", context_attention=across)
    config.mesh.update(data=1, fsdp=1, context=-1)
    return config


if __name__ == "__main__":
    main()
