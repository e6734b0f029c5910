"""The order of the rooms: the contracts of pyproject.toml hold."""

import subprocess
import sys
from pathlib import Path


def test_imports_point_downwards_and_in_no_circle():
    lint = "import sys, importlinter.cli; sys.exit(importlinter.cli.lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
