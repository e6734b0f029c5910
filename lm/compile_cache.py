"""JAX's compilation cache on disk, so that a machine compiles a program once and not in every run.

The verbs switch it on by JAX's own variables, which JAX reads when it is imported. JAX locks the folder, evicts what was used
longest ago and compiles anew what it cannot read. At the start of a run this module removes what JAX would trip over: entries
that a killed process left half-written, and entries whose bytes have changed, which JAX would run as they are.

  JAX_ENABLE_COMPILATION_CACHE=false   no cache
  JAX_COMPILATION_CACHE_DIR=FOLDER     this folder, with JAX's own settings and nothing else of what is said here
  XDG_CACHE_HOME=FOLDER                else the folder is FOLDER/lmcraft/xla-CPU, without it ~/.cache/lmcraft/xla-CPU

CPU is a digest of the processor's kind: XLA compiles for the instructions of the machine it runs on, and homes are shared.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import filelock
import xxhash

from lm import saving

MOST = 512 << 20  # bytes of all entries
FREE = 1 << 30  # bytes that must be free on the disk
SECONDS = 0.2  # what compiles faster is not kept
SUMS = "checksums.json"  # {entry: [bytes, XXH3 digest]}
WAIT = 5.0  # seconds for another process that has the lock


def switch_on() -> Path | None:
    """Set JAX's variables. Returns the folder, or None where there is no cache or not ours.

    A folder that cannot be written, or a disk that is almost full, means no cache; neither is an error.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in (
        "0",
        "false",
        "f",
        "no",
        "n",
        "off",
    ):
        return None
    try:
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who can write here can run code as this user
        if shutil.disk_usage(folder).free < FREE:
            return None
        with filelock.FileLock(folder / ".lockfile", timeout=WAIT):  # the one that JAX takes
            _sweep(folder)
    except (OSError, RuntimeError):  # no home, read-only, or the lock is held for long
        return None
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MOST,
        "jax_persistent_cache_min_compile_time_secs": SECONDS,
        "jax_persistent_cache_enable_xla_caches": "none",  # they know no bound
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            os.environ[name.upper()] = str(value)
            if "jax" in sys.modules:  # it has read its variables
                sys.modules["jax"].config.update(name, value)
    return folder


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "lmcraft" / f"xla-{_processor()}"


def _processor() -> str:
    """A digest of the kind of processor and of the instructions it knows."""
    told = [platform.system(), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
        told += sorted(line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part"))
    except OSError:
        told += [platform.processor(), platform.node()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _sweep(folder: Path) -> None:
    """Leaves the entries that are whole: JAX writes an entry's file, then the time of its last use."""
    sums = {}
    with contextlib.suppress(OSError, ValueError):
        sums = json.loads((folder / SUMS).read_text())
    sums = sums if isinstance(sums, dict) else {}
    kept = {}
    for entry in sorted(folder.glob("*-cache")):
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        content = entry.read_bytes()
        told = [len(content), xxhash.xxh3_128_hexdigest(content)]
        if content and used.is_file() and used.stat().st_size == 8 and sums.get(entry.name, told) == told:
            kept[entry.name] = told
        else:
            entry.unlink(missing_ok=True)
    for used in folder.glob("*-atime"):
        if used.name.removesuffix("-atime") + "-cache" not in kept:
            used.unlink(missing_ok=True)
    if kept != sums:
        saving.write(folder / SUMS, json.dumps(kept))
