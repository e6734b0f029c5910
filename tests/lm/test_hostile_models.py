"""A stranger's model ends in one line that names the file, in bounded time and memory, and nothing outside of it is read."""

import jax
import pytest

from data.text.tokenizer import load_tokenizer
from lm.convert.families import model_config
from lm.convert.peft import find_peft
from lm.convert.published import open_published
from lm.errors import UserError
from tests.lm import hostile_models as hostile
from tests.lm.convert.handmade import HF
from tests.lm.hostile_adapters import ADAPTER, adapter
from tests.lm.hostile_tokenizers import TOKENIZER


@pytest.fixture(autouse=True)
def few_bytes(request):
    """Fail if a test maps more than 3 GiB beyond what is mapped now."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (3 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("name", hostile.SAFETENSORS)
def test_safetensors(name, tmp_path):
    folder = hostile.model(tmp_path / "model")
    hostile.SAFETENSORS[name](folder)
    assert str(folder) in refused(lambda: open_published(folder))


@pytest.mark.parametrize("name", hostile.SHARDS)
def test_an_index_of_shards(name, tmp_path):
    folder = hostile.model(tmp_path / "model", shards=2)
    hostile.SHARDS[name](folder)
    assert str(folder) in refused(lambda: open_published(folder))


@pytest.mark.parametrize("name", hostile.CONFIG)
def test_a_config(name, tmp_path):
    folder = hostile.model(tmp_path / "model")
    hostile.CONFIG[name](folder)
    message = refused(lambda: open_published(folder))
    assert str(folder) in message and len(message) < 2000


@pytest.mark.parametrize("name", TOKENIZER)
def test_a_tokenizer(name, tmp_path):
    folder = hostile.model(tmp_path / "model")
    TOKENIZER[name](folder)
    assert len(refused(lambda: load_tokenizer(folder))) < 2000


@pytest.mark.parametrize("name", ADAPTER)
def test_an_adapter(name, tmp_path):
    folder = adapter(tmp_path / "adapter")
    ADAPTER[name](folder)
    assert str(folder) in refused(lambda: find_peft(folder, model_config(HF, ())))


def test_what_the_hostile_ones_are_made_from_is_read(tmp_path):
    for shards in (1, 2):
        assert open_published(hostile.model(tmp_path / f"{shards}", shards)).config.num_layers == 3
    assert load_tokenizer(tmp_path / "1").encode("ab") == [2]
    assert find_peft(adapter(tmp_path / "adapter"), model_config(HF, ())).adapter.rank == 2
    assert jax.device_count()  # the limit on memory leaves room for JAX


def test_there_are_many():
    tables = (hostile.SAFETENSORS, hostile.SHARDS, hostile.CONFIG, TOKENIZER, ADAPTER)
    assert sum(map(len, tables)) >= 150
