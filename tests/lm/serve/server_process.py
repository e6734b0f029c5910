"""A server in a process of its own, on the tiny model of a folder with a tokenizer: for tests of signals and of new weights.

python -m tests.lm.serve.server_process FOLDER
"""

import sys
from pathlib import Path

from configs.serve import default
from data.text.tokenizer import load_tokenizer
from lm.serve.api.app import make_app
from lm.serve.api.service import Service, newest_step
from lm.serve.run import listen
from lm.serve.settings import bound
from tests.lm.serve.conftest import engine_of, model_of


def main(folder: Path) -> None:
    config = default.get_config()
    config.checkpoint, config.port, config.watch = str(folder), 0, 0.05
    engine = engine_of(load_tokenizer(folder / "tokenizer.model"))
    engine.reopen = lambda path: model_of(newest_step(path))  # weights whose seed is the step
    service = Service(engine, "tiny", origin=str(folder))
    listen(config, service, make_app(service), bound(config.host, config.port))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
