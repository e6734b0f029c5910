"""What the examples share: the folder OUT that they write to, `run`, which runs a command, and the facts of a small world."""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # so that `import lm` works without `pip install -e .` too

# `python examples/1_pretrain.py FOLDER`; without a folder, and in a notebook, a new temporary one.
_given = len(sys.argv) == 2 and "ipykernel" not in sys.modules
OUT = Path(sys.argv[1] if _given else tempfile.mkdtemp(prefix="lmcraft-")).absolute()
OUT.mkdir(parents=True, exist_ok=True)

FACTS = {
    "fox": "red",
    "boat": "small",
    "house": "old",
    "stone": "heavy",
    "tree": "green",
    "lamp": "bright",
    "river": "deep",
    "coat": "warm",
    "bird": "quick",
    "road": "long",
    "leaf": "dry",
    "bell": "loud",
}


def run(command: str) -> None:
    """Run `python COMMAND` in the repository; {OUT} stands for the folder. Raises CalledProcessError if it fails.

    In a notebook that was started in the repository, `!python COMMAND` does the same.
    """
    words = [word.format(OUT=OUT) for word in shlex.split(command)]
    print("\n$ python", shlex.join(words), flush=True)
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True)
