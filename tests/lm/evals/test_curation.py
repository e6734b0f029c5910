"""The stage perplexity in a recipe, with a model in each of its forms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.curate import default
from data.recipe.run import prepare, run
from lm.convert.to_gguf import to_gguf
from lm.errors import UserError
from lm.evals.curation import STAGES
from lm.evals.documents import Scorer, columns
from lm.infer.load import load
from tests.data.recipe.test_run import files_of, rows_of
from tests.lm.evals.tiny_models import published, words


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """One model as a workdir, a Hugging Face folder and a GGUF file."""
    folder = tmp_path_factory.mktemp("models")
    workdir, theirs = published(folder)
    to_gguf(workdir, folder / "model.gguf")
    return [workdir, theirs, folder / "model.gguf"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for k in range(2):
        rows = [{"id": f"{k}.{n}", "text": words(3 + 2 * n, n + 20 * k)} for n in range(12)]
        (folder / f"{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(corpus: Path, checkpoint: Path | str, rules=None, **keys) -> dict:
    config = default.get_config()
    config.input, config.stages, config.processes, config.audit = str(corpus), "perplexity", 1, False
    config.perplexity.checkpoint, config.perplexity.max_tokens = str(checkpoint), 64
    config.update_from_flattened_dict(keys)
    return config.to_dict() | {"rules": rules or {}}


def curate(workdir: Path, config: dict) -> dict:
    return run(config, workdir, prepare(config, STAGES))


def test_a_recipe_filters_by_perplexity(corpus, models, tmp_path):
    found = [curate(tmp_path / path.name, config_of(corpus, path)) for path in models]
    rows = [{row["id"]: row for row in rows_of(tmp_path / path.name, "documents")} for path in models]
    texts = [row["text"] for row in rows[0].values()]
    true = columns(Scorer(*load(models[0]), max_tokens=64).scores(texts))
    for name, values in true.items():
        assert [row[name] for row in rows[0].values()] == values.tolist()
    for other in rows[1:]:  # the other forms may have other dtypes of weights
        np.testing.assert_allclose([row["perplexity"] for row in other.values()], true["perplexity"], rtol=1e-3)
    most = float(np.median(true["perplexity"]))
    found = curate(tmp_path / models[0].name, config_of(corpus, models[0], {"perplexity": (0, most)}))
    kept, dropped = (rows_of(tmp_path / models[0].name, name) for name in ("documents", "dropped"))
    assert len(kept) == len(dropped) == 12 and {row["reason"] for row in dropped} == {"perplexity"}
    assert max(row["perplexity"] for row in kept) <= most < min(row["perplexity"] for row in dropped)
    assert sum(found["histograms"]["perplexity"]["counts"]) == 24


@pytest.mark.slow
def test_workers_change_nothing(corpus, models, tmp_path, monkeypatch):
    from data.recipe import inputs, units

    monkeypatch.setattr(inputs, "UNIT_FILES", 1)
    curate(tmp_path / "one", config_of(corpus, models[1]))
    curate(tmp_path / "two", config_of(corpus, models[1], processes=2))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") and len(files_of(tmp_path / "one")) == 5
    # Nor do the ends of batches and units.
    monkeypatch.setattr(inputs, "UNIT_FILES", 4096)
    monkeypatch.setattr(units, "BATCH_DOCUMENTS", 5)
    curate(tmp_path / "other", config_of(corpus, models[1]))
    assert rows_of(tmp_path / "one", "documents") == rows_of(tmp_path / "other", "documents")


def test_results_depend_on_the_content_of_a_checkpoint(corpus, models, tmp_path):
    def key(path: Path) -> str:
        return prepare(config_of(corpus, path), STAGES)[0][1].key

    copy = shutil.copytree(models[1], tmp_path / "model")
    before = key(copy)
    assert key(copy) == before
    shutil.copy(models[1] / "model.safetensors", copy / "model.safetensors")  # another time
    assert key(copy) == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert key(copy) != before
    # A checkpoint that changes during a run is refused.
    config = config_of(corpus, copy)
    prepared = prepare(config, STAGES)
    weights[-3] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="has changed since the run began"):
        run(config, tmp_path / "run", prepared)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"perplexity.checkpoint": ""}, "perplexity.checkpoint names no model"),
        ({"perplexity.checkpoint": "/no/such/model"}, "perplexity.checkpoint: /no/such/model: no such folder"),
        ({"perplexity.max_tokens": 4096}, "perplexity.max_tokens=4096: the model reads at most 128"),
        ({"perplexity.batch": 0}, "perplexity.batch=0"),
    ],
)
def test_a_fault_of_the_config_is_one_line(corpus, models, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        curate(tmp_path / "run", config_of(corpus, models[0], **change))
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_tokenizer(corpus, models, tmp_path):
    copy = shutil.copytree(models[1], tmp_path / "model")
    for path in copy.glob("token*"):
        path.unlink()
    with pytest.raises(UserError, match="perplexity.checkpoint: .*has no tokenizer"):
        prepare(config_of(corpus, copy), STAGES)
