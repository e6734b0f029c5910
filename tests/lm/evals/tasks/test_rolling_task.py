"""Perplexity and bits per byte of texts: by hand, beside the harness's sums, of every kind of file, and what goes wrong."""

import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from lm.evals.task import Rolled, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.tasks import task_rows as rows


def uniform():
    """Every byte as likely as any other."""

    class Uniform(rows.Recorder):
        def rolled(self, texts):
            self.texts += texts
            return [Rolled((-math.log(256),) * len(text.encode()), tuple(text.encode())) for text in texts]

    return Uniform()


def test_a_model_without_an_opinion_needs_eight_bits_a_byte(tmp_path):
    folder = tmp_path / "perplexity"
    folder.mkdir()
    (folder / "a.txt").write_text("Größe 汉\n\nand more", encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"text": "two words"}) + "\n" + json.dumps({"text": "x"}) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["of a table"]}), folder / "c.parquet")
    model = uniform()
    outcome = open_task("perplexity", TaskSettings(data_dir=tmp_path, num_fewshot=5)).run(model)
    assert model.texts == ["Größe 汉\n\nand more", "two words", "x", "of a table"]
    results = outcome.results
    assert results["bits_per_byte"] == pytest.approx(8) and results["bits_per_byte_stderr"] == pytest.approx(0, abs=1e-9)
    assert results["byte_perplexity"] == pytest.approx(256)
    size, words = sum(len(text.encode()) for text in model.texts), 4 + 2 + 1 + 3
    assert results["word_perplexity"] == pytest.approx(256 ** (size / words))
    assert (results["n"], results["bytes"], results["words"], results["problems"]) == (4, size, words, {})
    assert outcome.samples[2] | {"doc_id": 2, "prompt": "x", "bytes": 1, "words": 1, "tokens": [120]} == outcome.samples[2]


def test_figures_are_sums_over_sums_with_the_error_of_a_ratio(tmp_path):
    texts = ["a b c", "dddd ee", "f"]
    (tmp_path / "perplexity").mkdir()
    (tmp_path / "perplexity" / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = rows.Recorder(logp=lambda request: -0.1 * ord(request.continuation) / 30)
    results = open_task("perplexity", TaskSettings(data_dir=tmp_path)).run(model).results
    logps = [-0.1 / 30 * sum(map(ord, text)) for text in texts]
    sizes, words = [5, 7, 1], [3, 2, 1]
    assert results["bits_per_byte"] == pytest.approx(-sum(logps) / 13 / math.log(2))
    assert results["byte_perplexity"] == pytest.approx(math.exp(-sum(logps) / 13))
    assert results["word_perplexity"] == pytest.approx(math.exp(-sum(logps) / 6))
    rate = sum(logps) / 13
    error = math.sqrt(1.5 * sum((logp - rate * size) ** 2 for logp, size in zip(logps, sizes))) / 13
    assert results["bits_per_byte_stderr"] == pytest.approx(error / math.log(2))
    assert results["byte_perplexity_stderr"] == pytest.approx(error * results["byte_perplexity"])
    pytest.importorskip("lm_eval")
    from lm_eval.api import metrics

    for name, counts in (("bits_per_byte", sizes), ("byte_perplexity", sizes), ("word_perplexity", words)):
        aggregate = metrics.bits_per_byte if name == "bits_per_byte" else metrics.weighted_perplexity
        assert results[name] == pytest.approx(aggregate(list(zip(logps, counts))))


def test_wikitext_is_tidied_but_counted_as_it_was(tmp_path):
    rows.put(tmp_path / "wikitext", rows.wikitext, {"train": 2, "test": 3})
    model = uniform()
    results = open_task("wikitext", TaskSettings(data_dir=tmp_path)).run(model).results
    pages = [rows.wikitext(i, "test")["page"] for i in range(3)]
    assert results["bytes"] == sum(len(page.encode()) for page in pages)
    assert results["bits_per_byte"] == pytest.approx(8 * sum(len(t.encode()) for t in model.texts) / results["bytes"])
    assert 'cat-like thing, (see 3.5) of 1,000. "It"\'s here' in model.texts[0]


def test_what_is_no_text_is_named_and_not_scored(tmp_path):
    (tmp_path / "perplexity").mkdir()
    lines = [{"text": "good"}, {"text": " \n"}, {"body": "x"}, {"text": "nan"}, {"text": ""}, {"text": "mute"}]
    (tmp_path / "perplexity" / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "oops\n")
    (tmp_path / "perplexity" / "y.jsonl").write_text("")

    class Odd(rows.Recorder):
        def rolled(self, texts):
            values = {"nan": (math.nan, -1.0), "mute": ()}
            return [Rolled(values.get(text, (-1.0, -2.0)), (1, 2)) for text in texts]

    outcome = open_task("perplexity", TaskSettings(data_dir=tmp_path)).run(Odd())
    assert outcome.results["n"] == 1 and outcome.results["bits_per_byte"] == pytest.approx(3 / 4 / math.log(2))
    assert outcome.results["bits_per_byte_stderr"] is None
    counts = {kind: problem["n"] for kind, problem in outcome.results["problems"].items()}
    assert counts == {"malformed_items": 2, "empty_documents": 2, "loglikelihoods_not_finite": 2, "empty_files": 1}


def test_without_a_document_figures_are_unknown(tmp_path):
    (tmp_path / "perplexity").mkdir()
    (tmp_path / "perplexity" / "x.txt").write_text("")
    results = open_task("perplexity", TaskSettings(data_dir=tmp_path)).run(rows.Recorder()).results
    assert (results["n"], results["bits_per_byte"], results["word_perplexity"]) == (0, None, None)
    assert results["problems"]["empty_documents"]["n"] == 1


def test_parts_by_file(tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("news", "law"):
        (tmp_path / "own" / f"{name}.txt").write_text(name)
    (tmp_path / "own.yaml").write_text("kind: rolling\ndoc_to_target: text\nfile_column: source\ngroup_by: source\n")
    results = open_task(str(tmp_path / "own.yaml"), TaskSettings(data_dir=tmp_path)).run(uniform()).results
    assert {name: part["bytes"] for name, part in results["sources"].items()} == {"law": 3, "news": 4}
    assert results["sources"]["law"]["bits_per_byte"] == pytest.approx(8)
