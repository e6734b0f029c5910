"""`serve.py --plan`: the engine's steps as TPU programs, compiled on this CPU."""

import json
import os
import subprocess
import sys

import pytest

from lm.train.chips import CHIPS
from tests.tpu import ENVIRONMENT, needs_libtpu
from tests.verbs import runs

MODEL = """
from configs.train import default


def get_config():
    config = default.get_config()
    config.model.update(vocab_size=1024, num_layers=2, embed_dim=512, num_heads=8, num_kv_heads=4, head_dim=SIZE,
                        mlp_dim=1024, max_positions=2048, attention_pattern=("local", "global"), window=256)
    return config
"""


def line(folder, *flags, size=128):
    (folder / "model.py").write_text(MODEL.replace("SIZE", str(size)))
    command = [sys.executable, "serve.py", "--config=default", f"--config.checkpoint={folder / 'model.py'}", *flags]
    return [*command, f"--workdir={folder / 'plan'}"]


def plan(*arguments, **size):
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(line(*arguments, **size), capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--plan=v5e"], "KIND:SHAPE"),
        (["--plan=v5e", "--config.checkpoint="], "serve.py: --"),
        (["--plan=v5e:2x2", "--config.quantize=int8"], "quantize=int8 packs matrices for one CPU"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(tmp_path, flags, said):
    done = runs.run(line(tmp_path, *flags))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "plan").exists()


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("size", "kernels"), [(128, 2), (64, 2), (256, 0)])
def test_steps_have_the_kernel_where_it_computes_the_attention(tmp_path, size, kernels):
    done = plan(tmp_path, "--config.mesh.data=2", "--config.mesh.tensor=2", "--plan=v5e:2x2", size=size)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert found["fits"] and "fits: " in done.stdout and found["cache_tokens"] == 32 * 2048
    decode, prefill = found["steps"]["decode"], found["steps"]["prefill"]
    assert decode["kernels"] == prefill["kernels"] == kernels and (decode["tokens"], prefill["tokens"]) == (32, 2048)
    memory, padded = found["memory"], max(128, size)
    assert memory["pages"] == 32 * 2048 * 2 * 2 * 4 * padded * 2 // 4  # keys and values of 2 layers, 4 heads, bfloat16, 4 chips
    assert memory["parameters"] + memory["pages"] <= memory["peak"] < memory["limit"] == CHIPS["TPU v5 lite"].memory
    assert decode["seconds"]["step"] >= memory["pages"] / CHIPS["TPU v5 lite"].hbm
