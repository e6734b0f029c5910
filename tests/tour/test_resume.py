"""A pretraining of the tour that dies resumes to the same bits; one of another text or recipe begins anew."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from tour.mesh import make_mesh
from tour.model import TINY, declare, init
from tour.optimizers import Recipe
from tour.pretrain import fingerprint, fit, next_token_loss
from tour.text import batch_of_rows, shuffled

RECIPE, SEED = Recipe(steps=12, learning_rate=0.01, warmup=2, save_every=3), 3
ROWS = [[np.random.default_rng(n).integers(0, TINY.vocab_size, 17).tolist()] for n in range(10)]


def run(folder, shown=lambda n: None):
    """The weights after a run that saves every third step. `shown` is called before each step."""

    def batches(n, params):
        shown(n)
        return batch_of_rows(shuffled(ROWS, n, 4), 16)

    weights, loss = declare(TINY), functools.partial(next_token_loss, TINY, z_loss=1e-4)
    with jax.set_mesh(make_mesh(1)):
        return jax.device_get(fit(loss, weights, init(weights, seed=0), RECIPE, batches, folder=folder))


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    last = int(np.random.default_rng(SEED).integers(4, RECIPE.steps))
    command = [sys.executable, "-m", "tests.tour.test_resume", str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line == f"before step {last}\n":
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    steps = []
    resumed = run(tmp_path, steps.append)
    assert 0 < steps[0] <= last and steps == list(range(steps[0], RECIPE.steps))
    jax.tree.map(np.testing.assert_array_equal, resumed, run(None))


def test_a_run_of_other_texts_or_another_recipe_resumes_nothing():
    name = fingerprint(ROWS, TINY, RECIPE)
    assert name == fingerprint(list(ROWS), TINY, Recipe(steps=12, learning_rate=0.01, warmup=2, save_every=3))
    others = [(ROWS[1:], TINY, RECIPE), (ROWS, TINY, Recipe(12, 0.02)), (ROWS, None, RECIPE)]
    assert len({name, *(fingerprint(*other) for other in others)}) == 4


if __name__ == "__main__":
    run(Path(sys.argv[1]), lambda n: print(f"before step {n}", flush=True))
