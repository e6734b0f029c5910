"""A stranger's workdir ends in one line, reads nothing outside, and takes no memory that its files do not hold."""

import shutil

import jax
import pytest

from lm.config import ModelConfig
from lm.convert.source import on_first_device, open_source
from lm.convert.to_workdir import write_workdir
from lm.errors import UserError
from lm.files import checksums
from lm.model.transformer import skeleton
from lm.parallel.memory import check_room
from tests.lm.attacks import edited
from tests.lm.hostile_workdirs import CHECKPOINT

CONFIG = ModelConfig(vocab_size=48, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, mlp_dim=24, dtype="float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    write_workdir(folder, CONFIG, jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), skeleton(CONFIG)[1]))
    return folder


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_checkpoint(name, made, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    CHECKPOINT[name](folder / "checkpoints" / "0")
    if "sums" not in name and "pipe" not in name and "large" not in name:
        for item in ("meta", "state"):
            (folder / "checkpoints" / "0" / item / "checksums.json").unlink()
            checksums.write(folder / "checkpoints" / "0" / item)
    with pytest.raises(UserError) as error:
        on_first_device(open_source(folder))
    assert len(str(error.value)) < 2000


def test_a_small_file_that_describes_terabytes(made, tmp_path):
    """The embedding has 2^31 - 1 rows by the config and by the metadata of the array; no file holds them."""
    folder, rows = tmp_path / "run", (1 << 31) - 1
    shutil.copytree(made, folder)
    step = folder / "checkpoints" / "0"
    edited("meta/metadata", lambda meta: meta["config"]["model"].update(vocab_size=rows))(step)
    wide = ModelConfig(**{**CONFIG.to_dict(), "vocab_size": rows, "embed_dim": 4096})
    with pytest.raises(UserError, match="of parameters, and this machine has"):
        check_room(skeleton(wide)[1], folder)
    for item in ("meta", "state"):
        (step / item / "checksums.json").unlink()
        checksums.write(step / item)
    with pytest.raises(UserError, match="of another architecture"):
        on_first_device(open_source(folder))


def test_what_the_hostile_ones_are_made_from_is_read(made):
    assert len(jax.tree.leaves(on_first_device(open_source(made)))) > 5
