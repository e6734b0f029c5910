"""A tiny model in an engine behind a real server on a free port, and the official client for it."""

import contextlib
import threading
import time

import openai
import pytest
from flax import nnx

from data.text.sentencepiece_tokenizer import train
from lm.config import ModelConfig
from lm.infer.engine.engine import Engine
from lm.infer.engine.room import Capacity
from lm.model.transformer import skeleton
from lm.serve.api.app import Settings, make_app
from lm.serve.api.service import Limits, Service
from lm.serve.run import Server
from lm.serve.settings import bound
from tests.lm.weights import drawn as parameters

TEXT = [
    "def add(a, b):\n    return a + b\n",
    "Größe → 7 µm, 深い学習\n",
    "the cat and the hat sat on that mat\n",
    '{"a": [1, 2]}\n',
]
# A few more rows than the tokenizer has pieces: those must never be drawn.
CONFIG = ModelConfig(
    vocab_size=400, num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=48, max_positions=1024, dtype="float32"
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train(TEXT * 3, tmp_path_factory.mktemp("tokenizer") / "t", vocab_size=340, sample_bytes=1 << 16, seed=0, threads=1)


@pytest.fixture(scope="session")
def engine(tokenizer):
    engine = engine_of(tokenizer)
    engine.warm()
    yield engine
    engine.close()


def engine_of(tokenizer, queue: int = 1024, **options) -> Engine:
    return Engine(model_of(0), tokenizer, Capacity(rows=4, budget=16, pages=600, queue=queue), **options)


def model_of(seed: int):
    """Random, but with opinions: its matrices are four times as large as those of a fresh model."""
    return nnx.merge(skeleton(CONFIG)[0], parameters(CONFIG, seed, scale=4.0))


@contextlib.contextmanager
def held(engine):
    """Let the engine take no step within the block, but the one that it may be at."""
    go = threading.Event()

    def wait(kind, facts) -> None:
        go.wait()

    engine.observers.append(wait)
    try:
        yield
    finally:
        go.set()
        engine.observers.remove(wait)


@pytest.fixture(scope="session")
def service(engine):
    return Service(engine, "tiny", limits=Limits(timeout=60.0))


@contextlib.contextmanager
def serving(service, settings=Settings(), routers=()):  # noqa: B008 (it is immutable)
    """The base URL of a server in this process."""
    sock = bound("127.0.0.1", 0)
    server = Server(make_app(service, settings, routers), service, drain=30.0, read_seconds=settings.read_seconds)
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def url(service):
    with serving(service) as url:
        yield url


@pytest.fixture(scope="session")
def client(url):
    return client_of(url)


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60.0)


def until(condition, seconds: float = 60.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)
