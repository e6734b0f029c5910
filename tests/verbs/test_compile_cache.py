"""The verbs keep what XLA compiled, and nothing that happens to that folder ends a run or changes what it does."""

import os
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.files import compile_cache
from tests.lm.evals import tiny_models
from tests.verbs import runs

ENTRIES = {"one": b"1" * 100, "two": b"2" * 200, "three": b"3" * 300}


def complete(checkpoint, cache, **variables):
    """lm.generate with its own choice of a folder below `cache`."""
    done = runs.run(
        [sys.executable, "-m", "lm.generate", f"--checkpoint={checkpoint}", "--prompt=ab cd", "--max_new_tokens=4"],
        **{"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(cache)} | variables,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def entries(cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("lmcraft/xla-*/*-cache")}


def uses(cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("lmcraft/xla-*/*-atime")}


@pytest.mark.slow
def test_a_second_run_compiles_nothing_anew(tmp_path):
    checkpoint = tiny_models.published(tmp_path)[1]
    first = complete(checkpoint, tmp_path)
    compiled, used = entries(tmp_path), uses(tmp_path)
    assert any(name.startswith("jit_loop") for name in compiled)
    assert complete(checkpoint, tmp_path) == first
    assert entries(tmp_path) == compiled
    again = uses(tmp_path)
    assert again.keys() == used.keys() and all(again[name] != used[name] for name in used)

    # A byte that changed, an entry without its end, one without the time of its use.
    changed, cut = (next(tmp_path.glob(f"lmcraft/*/{x}-*-cache")) for x in ("jit_loop", "jit_start"))
    half = next(path for path in tmp_path.glob("lmcraft/*/jit_*-cache") if path not in (changed, cut))
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 255
    changed.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:50])
    half.with_name(half.name.replace("-cache", "-atime")).unlink()
    assert complete(checkpoint, tmp_path) == first
    assert entries(tmp_path).keys() == compiled.keys() and entries(tmp_path)[cut.name] != b"" and len(cut.read_bytes()) > 50

    (tmp_path / "file").write_text("")
    assert complete(checkpoint, tmp_path / "file") == first  # there can be no folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that is chosen, with entries as JAX writes them, which one run has seen."""
    for name in [name for name in os.environ if name.startswith("JAX_") and "CACHE" in name]:
        monkeypatch.delenv(name)
    # What switch_on sets ends with the test.
    monkeypatch.setattr(compile_cache.os, "environ", dict(os.environ) | {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": ""})
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    folder = compile_cache.switch_on()
    for name, content in ENTRIES.items():
        (folder / f"{name}-cache").write_bytes(content)
        (folder / f"{name}-atime").write_bytes(time.time_ns().to_bytes(8, "little"))
    again()
    return folder


def again():
    """As at the start of another run, whose variables are not set yet."""
    compile_cache.os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return compile_cache.switch_on()


def whole(folder) -> set[str]:
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def test_what_is_damaged_goes_and_the_rest_stays(folder):
    assert again() == folder and whole(folder) == {"one", "two", "three"}
    (folder / "one-cache").write_bytes(b"1" * 50 + b"x" + b"1" * 49)
    (folder / "two-atime").unlink()
    (folder / "left-atime").write_bytes(bytes(8))
    assert again() == folder
    assert whole(folder) == {"three"} and not (folder / "left-atime").exists()
    (folder / compile_cache.SUMS).write_text("{")
    assert again() == folder and whole(folder) == {"three"}


def test_the_folder_is_of_this_processor_and_private(folder, tmp_path):
    assert folder.parent == tmp_path / "lmcraft" and folder.stat().st_mode & 0o077 == 0
    variables = compile_cache.os.environ
    assert variables["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert int(variables["JAX_COMPILATION_CACHE_MAX_SIZE"]) == compile_cache.MAX


def test_another_choice_of_the_user_stands(folder, tmp_path):
    variables = compile_cache.os.environ
    home, variables["XDG_CACHE_HOME"] = variables["XDG_CACHE_HOME"], str(tmp_path / "other")
    for chosen in ({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, {"JAX_ENABLE_COMPILATION_CACHE": "False"}):
        variables.pop("JAX_COMPILATION_CACHE_DIR", None)
        before = dict(variables) | chosen
        variables.update(before)
        assert compile_cache.switch_on() is None and variables == before
        assert not (tmp_path / "other").exists()
    variables.update({"JAX_ENABLE_COMPILATION_CACHE": "true", "XDG_CACHE_HOME": home})
    assert again() == folder


def test_without_room_or_with_a_lock_that_is_held_there_is_no_cache(folder, monkeypatch):
    monkeypatch.setattr(compile_cache, "FREE", 1 << 62)
    assert again() is None
    monkeypatch.setattr(compile_cache, "FREE", 0)
    monkeypatch.setattr(compile_cache, "WAIT", 0.01)
    held, over = threading.Event(), threading.Event()

    def hold():
        with compile_cache.filelock.FileLock(folder / ".lockfile"):
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert again() is None
    over.set()
    thread.join()
    assert again() == folder


@pytest.mark.skipif("JAX_COMPILATION_CACHE_DIR" not in os.environ, reason="the tests' cache is off")
def test_the_tests_cache_programs_of_one_device_only():
    def for_one_device(x):
        return x * 2

    def for_eight_devices(x):
        return x * 3

    jax.jit(for_one_device)(np.ones(8))
    jax.jit(for_eight_devices, out_shardings=NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data")))(np.ones(8))
    entries = [path.name for path in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit_for_*_device*")]
    assert entries and all(name.startswith("jit_for_one_device") for name in entries)


def test_several_devices_have_no_cache(folder):
    variables = compile_cache.os.environ
    for count, found in ((1, folder), (2, None), (16, None)):
        variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count} --xla_cpu_max_isa=AVX2"
        variables.pop("JAX_ENABLE_COMPILATION_CACHE", None)
        assert again() == found
    assert variables["JAX_ENABLE_COMPILATION_CACHE"] == "False"
