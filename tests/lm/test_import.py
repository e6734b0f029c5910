"""`import lm` is light, and says so if another module hides the package `data`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs Python in a folder, which it searches first, then the repository."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("other", ["data.py", "data/__init__.py"])
def test_another_module_data_is_named_in_one_line(tmp_path, other):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("print('ran')\n")
    line = (
        f"lm needs its own package `data`, but `import data` finds {tmp_path / other}: "
        "rename it, or take its folder off sys.path"
    )
    done = python("-c", "import lm", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"ImportError: {line}")
    done = python("-c", "import data\nimport lm", cwd=tmp_path)  # it is loaded already
    assert done.stderr.splitlines()[-1] == f"ImportError: {line}"
    for module in ("lm.generate", "lm.convert"):
        done = python("-m", module, "--help", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


def test_import_loads_no_jax_and_keeps_its_data(tmp_path):
    (tmp_path / "data").mkdir()  # a folder of files is no module
    (tmp_path / "data" / "a.txt").touch()
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "data.py").touch()
    code = "import sys, os, lm; assert 'jax' not in sys.modules; os.chdir('later'); import data.text; print(data.__file__)"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == str(REPOSITORY / "data" / "__init__.py"), done.stderr
