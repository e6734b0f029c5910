"""Enable JAX's compilation cache on disk, so that a machine compiles a program once and not in every run.

The verbs enable it through JAX's own variables, which JAX reads when it is imported. JAX locks the folder, evicts the least
recently used entries and recompiles those that it cannot read. At the start of a run this module removes entries that a killed
process left incomplete, and entries whose bytes have changed, because JAX would run them. In a job of several processes only
process 0 writes entries (JAX) and removes them, and on CPUs none uses the cache; lm/parallel/hosts.py has the rest.

Several CPU devices in one process, which tests fake, have no cache either: each device runs the collectives of a program that
was read in an order of its own, and they can wait for one another for ever.

  JAX_ENABLE_COMPILATION_CACHE=false   no cache
  JAX_COMPILATION_CACHE_DIR=FOLDER     this folder with JAX's own settings; this module does nothing
  XDG_CACHE_HOME=FOLDER                the folder is FOLDER/lmcraft/xla-CPU; if unset ~/.cache/lmcraft/xla-CPU

CPU is a digest of the processor's kind: XLA compiles for the instructions of this machine, and home folders may be shared.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import filelock
import xxhash

from lm.files import saving

MAX = 512 << 20  # bytes of all entries
FREE = 1 << 30  # bytes that must be free on the disk
SECONDS = 0.2  # programs that compile faster are not cached
SUMS = "checksums.json"  # {entry: [bytes, XXH3 digest]}
# Variables that number the processes of a job. Many processes that share a home would wait for one another.
NUMBERS = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID", "MEGASCALE_SLICE_ID")
SEVERAL = re.compile(r"--xla_force_host_platform_device_count=0*(?:[2-9]|[1-9]\d)")  # in XLA_FLAGS
OFF = ("0", "false", "f", "no", "n", "off")  # what JAX takes for false
WAIT = 5.0  # seconds for another process that has the lock


def switch_on() -> Path | None:
    """Set JAX's variables. Return the folder, or None without a cache or with the user's own.

    A folder that is not writable, or a disk that is almost full, disables the cache without an error.
    """
    if SEVERAL.search(os.environ.get("XLA_FLAGS", "")):
        _set("jax_enable_compilation_cache", False)
        return None
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in OFF:
        return None
    try:
        folder = folder_of("xla")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write here can run code as this user
        if shutil.disk_usage(folder).free < FREE:
            return None
        if all(os.environ.get(name, "0") == "0" for name in NUMBERS):
            with filelock.FileLock(folder / ".lockfile", timeout=WAIT):  # JAX's own lock
                _sweep(folder)
    except (OSError, RuntimeError):  # no home, read-only, or the lock timed out
        return None
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MAX,
        "jax_persistent_cache_min_compile_time_secs": SECONDS,
        "jax_persistent_cache_enable_xla_caches": "none",  # they have no size limit
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            _set(name, value)
    return folder


def _set(name: str, value: object) -> None:
    os.environ[name.upper()] = str(value)
    if "jax" in sys.modules:  # it has already read its variables
        sys.modules["jax"].config.update(name, value)


def home() -> Path:
    """Return lmcraft's folder in the user's cache. Raises: RuntimeError if there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "lmcraft"


def folder_of(kind: str) -> Path:
    """Return the folder KIND-CPU of programs for this kind of processor. Raises: RuntimeError if there is no home."""
    return home() / f"{kind}-{_processor()}"


def _processor() -> str:
    """Return a digest of the processor's kind and instruction set."""
    facts = [platform.system(), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
        facts += sorted(line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part"))
    except OSError:
        facts += [platform.processor(), platform.node()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _sweep(folder: Path) -> None:
    """Remove incomplete and changed entries. JAX writes an entry's file, then its last-use time, so both must exist."""
    sums = {}
    with contextlib.suppress(OSError, ValueError):
        sums = json.loads((folder / SUMS).read_text())
    sums = sums if isinstance(sums, dict) else {}
    kept = {}
    for entry in sorted(folder.glob("*-cache")):
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        content = entry.read_bytes()
        checksum = [len(content), xxhash.xxh3_128_hexdigest(content)]
        if content and used.is_file() and used.stat().st_size == 8 and sums.get(entry.name, checksum) == checksum:
            kept[entry.name] = checksum
        else:
            entry.unlink(missing_ok=True)
    for used in folder.glob("*-atime"):
        if used.name.removesuffix("-atime") + "-cache" not in kept:
            used.unlink(missing_ok=True)
    if kept != sums:
        saving.write(folder / SUMS, json.dumps(kept))
