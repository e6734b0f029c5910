"""What the machine does is measured and logged with the training lines."""

import jax.numpy as jnp
import psutil

from lm.train.events import step_log


def test_measurements_of_this_process():
    found = step_log.System()()
    assert found.keys() == {"system_memory_gib", "system_memory_percent", "system_cpu_percent"}  # a CPU device tells nothing
    assert 0.05 < found["system_memory_gib"] <= psutil.virtual_memory().total / 2**30
    assert 0 < found["system_memory_percent"] <= 100


def test_memory_grows_by_what_is_allocated(monkeypatch):
    monkeypatch.setattr(step_log, "EVERY", 0.0)
    measure = step_log.System()
    before = measure()["system_memory_gib"]
    kept = jnp.ones((256, 1024, 1024), jnp.uint8).block_until_ready()
    assert 0.2 < measure()["system_memory_gib"] - before < 0.6 and kept.size == 2**28


def test_lines_close_to_each_other_share_a_measurement(monkeypatch):
    monkeypatch.setattr(step_log, "EVERY", 1e9)
    measure = step_log.System()
    first = measure()
    kept = jnp.ones((64, 1024, 1024), jnp.uint8).block_until_ready()
    assert measure() is first and kept.size
