"""What does not fit into memory ends a verb with one line that names keys."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError, out_of_memory
from tests.verbs import runs

VERB = """
import sys
import jax.numpy as jnp
from lm import cli
cli.define_flags()
sys.argv[:] = ["train.py", "--config=configs/train/tiny.py", "--workdir=nowhere"]
with cli.guard():
    cli.parse(sys.argv)
    jnp.zeros(2**48, jnp.float32)
"""


def test_what_xla_and_numpy_refuse_is_told_from_other_errors():
    with pytest.raises(Exception) as of_xla:
        jnp.zeros(2**48, jnp.float32)
    line = out_of_memory(of_xla.value, {"batch_size", "accumulate", "mesh.fsdp"})
    cures = "lower batch_size, or raise accumulate, or split the model over more devices (mesh.fsdp)"
    assert line == f"out of memory (allocating 1,125,899,906,842,624 bytes): {cures}"
    with pytest.raises(MemoryError) as of_numpy:
        np.zeros(2**50)
    wrapped = RuntimeError("a thread failed")
    wrapped.__cause__ = of_numpy.value
    assert out_of_memory(wrapped, ()).startswith("out of memory (Unable to allocate 8.00 PiB")
    assert out_of_memory(MemoryError(), ()) == "out of memory: take a smaller model or a shorter input"
    for other in (UserError("out of memory"), RuntimeError("RESOURCE_EXHAUSTED: a quota"), ValueError("")):
        assert out_of_memory(other, ()) is None


def test_a_verb_ends_with_one_line():
    done = subprocess.run(
        [sys.executable, "-c", VERB], cwd=runs.REPOSITORY, env=runs.environment(), capture_output=True, text=True, timeout=120
    )
    (line,) = runs.complaint(done.stderr)
    assert done.returncode == 1 and line.startswith("train.py: out of memory (allocating 1,125,899,906,842,624 bytes): lower ")
    for key in ("batch_size", "sequence_length", "accumulate", "model.remat=full", "mesh.fsdp"):
        assert key in line
    assert "batch_tokens" not in line
