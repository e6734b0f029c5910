"""JAX's compilation cache of the tests, kept between runs in a folder of the user's cache, beside that of the verbs.

Programs for several devices are not cached (lm/files/compile_cache.py has the reason).

JAX_ENABLE_COMPILATION_CACHE=false compiles everything anew; JAX_COMPILATION_CACHE_DIR=FOLDER takes another folder.
"""

import os
import threading
from pathlib import Path

import zstandard

from lm.files import compile_cache

MAX = 2 << 30  # bytes of all entries; the tests write about a fifth of it


def variables() -> dict[str, str]:
    """Return JAX's variables. Every program is kept, because most are small here, and writing takes no lock."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false"):
        return {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(compile_cache.folder_of("tests")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }


def leave_out_several_devices() -> None:
    """Let this process cache programs for one device only. JAX has one switch for all, so a function of its own is replaced."""
    from jax._src import compilation_cache, compiler

    compile_one, is_used, compiling = compiler.compile_or_get_cached, compilation_cache.is_cache_used, threading.local()

    def compile_or_get_cached(backend, computation, devices, *arguments, **options):
        compiling.several = devices.size > 1
        return compile_one(backend, computation, devices, *arguments, **options)

    compiler.compile_or_get_cached = compile_or_get_cached
    compilation_cache.is_cache_used = lambda backend: is_used(backend) and not getattr(compiling, "several", False)


def sweep() -> None:
    """Remove entries that a killed test of the last run left incomplete, and the oldest ones if they are too many."""
    folder = Path(variables().get("JAX_COMPILATION_CACHE_DIR", os.devnull))
    if not folder.is_dir():
        return
    stamp, total = folder / "swept", 0
    last = stamp.stat().st_mtime if stamp.exists() else 0.0
    for entry, about in sorted(((path, path.stat()) for path in folder.glob("*-cache")), key=lambda one: -one[1].st_atime):
        total += about.st_size
        if total > MAX or (about.st_mtime >= last and not _whole(entry.read_bytes())):
            entry.unlink()
    stamp.touch()


def _whole(content: bytes) -> bool:
    reader = zstandard.ZstdDecompressor().decompressobj()
    try:
        reader.decompress(content)
    except zstandard.ZstdError:
        return False
    return reader.eof
