"""Programs with compiled kernels are stored in JAX's cache on disk, and another process loads and runs them."""

import sys

from tests.verbs import runs


def test_another_process_loads_and_runs_a_stored_program(tmp_path):
    settings = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    found = []
    for _ in range(2):
        done = runs.run([sys.executable, "-m", "tests.lm.kernels.cpu.stored_program"], **settings)
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout))
    assert found == [0, 1]
