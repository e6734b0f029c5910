"""Open a model and serve it until a signal ends the server."""

import contextlib
import dataclasses
import functools
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvicorn
from fastapi import FastAPI

from lm.errors import UserError
from lm.files.untrusted import shown
from lm.serve import page, settings
from lm.serve.api.app import make_app
from lm.serve.api.limits import HEAD, REQUESTS, WAITING, Connection
from lm.serve.api.service import Limits, Service, newest_step
from lm.serve.batch import answer_file
from lm.serve.monitor import Watch
from lm.train.values import MAX

FILES = 2 * (REQUESTS + WAITING)  # that are open at once


@contextlib.contextmanager
def opened(config) -> Iterator[Service | None]:
    """Yield the model of a config as a service. Its engine is closed at the end. Raises: UserError.

    On several processes all but the first compute its steps, and get None when its engine is closed.
    """
    from lm.align.reward_model import chat_template_of
    from lm.infer.engine.adapters import Slots
    from lm.infer.engine.open import open_engine
    from lm.parallel.hosts import is_first

    count = settings.adapter_count(config)
    engine = open_engine(
        config.checkpoint,
        settings.capacity_of(config),
        dtype=config.dtype,
        quantize=config.quantize,
        speculate=config.speculate,
        adapters=settings.adapters_of(config),
        slots=Slots(count, config.adapters.rank, config.adapters.targets) if count else None,
        mesh=settings.mesh_of(config),
    )
    try:
        if not is_first():
            settings.leave_signals()
            engine.follow()
            yield None
            return
        if engine.tokenizer is None:
            raise UserError(f"checkpoint={config.checkpoint} has no tokenizer, so it cannot read texts")
        file = config.chat_template
        yield Service(
            engine,
            settings.name_of(config),
            template=Path(file).read_text(encoding="utf-8") if file else chat_template_of(config.checkpoint),
            limits=Limits(**{field.name: config[field.name] for field in dataclasses.fields(Limits)}),
            adapter_dir=Path(config.adapters.dir) if config.adapters.dir else None,
            origin=config.checkpoint,
            towers=_towers(config, engine),
            sampling=settings.sampling_of(config),
        )
    finally:
        engine.close()


def _towers(config, engine):
    """Return what the model sees and hears, or None: then it only reads, and a line says why if it could do more."""
    from data.media import library
    from lm.convert.multimodal.processor import towers_of

    try:
        towers = towers_of(Path(config.checkpoint), engine.config, engine.tokenizer)
        if towers is not None and towers.image is not None:
            library("PIL.Image", "reading images")
        if towers is not None and towers.audio is not None:
            library("soundfile", "reading audio")
        return towers
    except UserError as error:
        print(f"{settings.name_of(config)}: no images and no sound: {shown(error)}", flush=True)
        return None


def serve(config, workdir: Path) -> int:
    """Serve, or answer a batch file. Return the exit code. Raises: UserError."""
    with opened(config) as service:
        if service is None:
            return 0
        if config.batch:
            return answer_file(service, Path(config.batch), workdir / "results.jsonl", config.rows)
        sock = settings.bound(config.host, config.port)
        if service.no_chat:
            print(f"{service.name}: no chats: {shown(service.no_chat)}", flush=True)
        service.engine.warm(adjusts=True)  # compiles, so that no request waits for it
        print(f"{service.name}: {memory(service.engine, config)}", flush=True)
        engine, watched = service.engine, settings.watch_settings(config)
        service.watch = Watch(watched, workdir, engine, model_name=service.name, checkpoint=lambda: service.checkpoint)
        try:
            limits = settings.app_settings(config)
            if service.towers is not None:  # their base64 has four characters for three bytes
                limits = dataclasses.replace(limits, body_bytes=limits.body_bytes + config.media_bytes * 4 // 3)
            listen(config, service, make_app(service, limits, (page.router(service),)), sock)
        finally:
            service.watch.close()
    return 0


def memory(engine, config) -> str:
    """Return in words what the process holds, and what sets the part that a user can choose."""
    weights, cache = engine.held
    chosen = f"blocks={config.blocks}" if config.blocks else f"context={config.context}: {engine.stats().blocks} blocks"
    return (
        f"{psutil.Process().memory_info().rss / 1e9:.2f} GB of memory, of it {weights / 1e9:.2f} GB weights and "
        f"{cache / 1e9:.2f} GB cache (--config.{chosen})"
    )


def listen(config, service: Service, app: FastAPI, sock: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then no new ones are taken, and running ones have `drain` seconds to end."""
    host, port = sock.getsockname()[:2]
    allow_files()
    sock.listen()  # who reads the address may connect at once
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"{service.name} answers at {address}/v1, and on a page at {address}; Ctrl-C ends it", flush=True)
    end = threading.Event()
    if config.watch:
        threading.Thread(target=watch, args=(service, config.checkpoint, config.watch, end), daemon=True).start()
    server = Server(app, service, config.drain, config.read_seconds)
    try:
        settings.run_until_signal(server, sock)
    finally:
        end.set()
        service.engine.close(config.drain)


def allow_files() -> None:
    """Raise the limit of open files to what lm.serve.api.limits allows of connections. Shells begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard))


class Server(uvicorn.Server):
    """uvicorn, whose service is told of a signal before its connections are."""

    def __init__(self, app: FastAPI, service: Service, drain: float, read_seconds: float):
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(Connection, seconds=read_seconds or float(MAX), waiting={}),
                ws="none",
                h11_max_incomplete_event_size=HEAD,
                log_level="warning",
                timeout_graceful_shutdown=max(1, round(drain)),
                server_header=False,
            )
        )
        self._service = service

    def handle_exit(self, sig: int, frame) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


def watch(service: Service, path: str, seconds: float, end: threading.Event) -> None:
    """Swap the weights whenever the training run at `path` has a newer checkpoint, until `end` is set.

    A checkpoint that cannot be loaded is reported and left alone.
    """
    newest = newest_step(path)
    while not end.wait(seconds):
        step = newest_step(path)
        if step <= newest:
            continue
        newest = step
        try:
            service.swap(path)
            print(f"{service.name}: now at step {step}", flush=True)
        except Exception as error:  # whatever is wrong with the new one, the old one serves on
            print(f"{service.name}: step {step} is not taken: {type(error).__name__}: {shown(error)}", flush=True)
