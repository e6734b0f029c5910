"""The order of examples: training reads all in every epoch, each time in another order; validation reads them once."""

import importlib
import itertools

import numpy as np
import pytest

from data.chat.examples import prepare_examples
from data.tasks import TASKS
from data.text.sentencepiece_tokenizer import train
from lm.align import preference
from lm.align.data import batches
from lm.align.settings import example_kind


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    rows = itertools.islice(TASKS["preferred_style"]("train", 0), 300)
    texts = (f"{row['prompt']} {row['completion']}" for row in rows)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(texts, path, vocab_size=400, sample_bytes=1 << 18, seed=0, threads=1)


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo", "reward"])
def test_training_never_ends_and_validation_does(name, context, tokenizer, tmp_path):
    config = importlib.import_module(f"configs.align.{name}").get_config()
    config.update(batch_size=4, sequence_length=64)
    config.data.update(input="builtin:preferred_style", max_examples=23, max_valid_examples=7)
    config.mesh.context = context
    examples = prepare_examples(config, tmp_path, tokenizer, example_kind(config))
    made = preference.batches_of if config.method == "preference" else batches
    learn, valid = (made(config, examples, split, 4) for split in ("train", "valid"))
    per_epoch = -(-learn.num_rows // 4)
    ids = np.concatenate([learn.batch(n)["ids"] for n in range(3 * per_epoch)])
    epochs = [ids[e * learn.num_rows :][: learn.num_rows].tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(learn.num_rows)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    seen = np.concatenate([valid.batch(n)["ids"] for n in range(valid.num_batches)])
    assert seen[: valid.num_rows].tolist() == list(range(valid.num_rows)) and set(seen[valid.num_rows :]) <= {-1}
    with pytest.raises(IndexError):
        valid.batch(valid.num_batches)
