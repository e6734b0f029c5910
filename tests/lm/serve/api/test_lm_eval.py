"""lm-evaluation-harness against the API, unchanged, as against its own backend: `lm_eval --model local-completions`."""

import json

import pytest

from lm.evals.tasks.harness import undescribed
from lm.infer.engine.open import open_engine
from lm.infer.engine.room import Capacity
from lm.serve.api.service import Service
from tests.lm.convert.test_smollm2 import FILE
from tests.lm.evals.tiny_models import published, words
from tests.lm.serve.conftest import serving

pytest.importorskip("lm_eval")
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
LocalCompletionsAPI = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI

ANIMALS = [("cat", "mammal"), ("trout", "fish"), ("eagle", "bird"), ("ant", "insect"), ("shark", "fish"), ("dog", "mammal")]
KINDS = ["mammal", "fish", "bird", "insect"]
TASKS = {
    "kinds": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "said": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(params=["tiny", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def model(request, tmp_path):
    """(checkpoint of the server, options of transformers, folder of a tokenizer, texts of the items)."""
    if request.param == "SmolLM2":
        if not FILE.exists():
            pytest.skip("make .venv/smollm2 installs the model")
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name).save_pretrained(tmp_path / "tokenizer")
        texts = [f"Question: What kind of animal is the {animal}?\nAnswer: It is a kind of" for animal, _ in ANIMALS]
        return FILE, {"pretrained": str(FILE.parent), "gguf_file": FILE.name}, tmp_path / "tokenizer", texts
    workdir, folder = published(tmp_path, max_positions=256)
    return workdir, {"pretrained": str(folder)}, folder, [words(4 + n, n) for n in range(len(ANIMALS))]


def test_the_harness_finds_the_same_through_the_api(model, tmp_path, monkeypatch):
    checkpoint, options, tokenizer, texts = model
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    rows = (
        {"text": text, "choices": KINDS, "right": KINDS.index(kind)} for text, (_, kind) in zip(texts, ANIMALS, strict=True)
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": f"made_{name}", "test_split": "test", **files, **task}))

    expected = evaluated(HFLM(**options, dtype="float32", device="cpu", add_bos_token=False), tmp_path)
    engine = open_engine(checkpoint, Capacity(pages=200), dtype="float32")
    with serving(Service(engine, "model")) as url:
        ours = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model="model", tokenizer=str(tokenizer), num_concurrent=3)
        found = evaluated(ours, tmp_path)
    engine.close()
    assert found["results"] == expected["results"]
    for one, other in zip(found["samples"]["made_kinds"], expected["samples"]["made_kinds"], strict=True):
        for (mine, greedy), (its, its_greedy) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            assert mine == pytest.approx(its, abs=1e-3) and greedy == its_greedy
    said = [[sample["resps"] for sample in run["samples"]["made_said"]] for run in (found, expected)]
    assert said[0] == said[1]


def evaluated(model, folder) -> dict:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with undescribed():
        return simple_evaluate(model, tasks=[f"made_{name}" for name in TASKS], task_manager=manager, bootstrap_iters=0)
