"""The training report: complete, partial and hostile inputs, and a page that stands alone."""

import html
import html.parser
import json
import math
import re

import numpy as np
import pytest

from lm.files.saving import plain
from lm.reports import charts, page
from lm.reports import train as report
from lm.runs import provenance
from lm.train import history

FULL = {
    "title": "tiny <run>",
    "finished": True,
    "config": {"model": {"layers": 2, "rotary": {"base": 1e4}}, "name": "a<b", "empty": {}},
    "machine": {"cpu": "Some CPU", "flags": ["amx_bf16", "avx2"], "cores": 2, "devices": {"cpu cpu": 8}},
    "parameters": 14_012_416,
    "parameter_table": {"embedding": 10_000_000, "blocks": 4_012_416},
    "data": {
        "sources": {
            "stdlib": {"documents": 1200, "bytes": 5_000_000, "exact_duplicates": 3, "rows": np.int64(70)},
            "docs": {"documents": 34, "bytes": 1_000, "near_copies": 2},
        },
        "notes": ["Split by the hash of the path."],
    },
    "mixture": {
        "stages": [{"step": 0, "shares": {"stdlib": 1.0}}, {"step": 900, "shares": {"stdlib": 0.25, "docs": 0.75}}],
        "sources": {"stdlib": {"tokens": 7_123, "epochs": 4.561}, "docs": {"tokens": 0, "epochs": 0.0}},
        "warnings": ["source stdlib is read 4.6 times"],
    },
    "tokenizer": {"vocab_size": 8192, "bytes_per_token": 3.125},
    "validation": {
        "loss": 1.7,
        "bits_per_byte": 1.2,
        "tokens": 5000,
        "bytes": 16000,
        "unigram": 4.8,
        "3-gram": 2.8,
        "5-gram": 1.8,
    },
    "samples": [{"prompt": "def f(", "text": "x):\n  return '<script>alert(1)</script>' & \"</pre>\""}],
    "throughput": {"tokens_per_second": 4702.4, "mfu": 0.413, "mfu_formula": "6·N·tokens"},
    "stages": {"tokenize": 33.1, "train": 7300.0},
    "training": {"steps": 1000, "tokens": 3_276_800_000, "skipped": 1},
    "next": [],
}


def metrics(steps, valid_every):
    for step in range(1, steps + 1):
        yield {
            "step": step,
            "loss": 2 + 7 * math.exp(-step / 100),
            "tokens": step * 4096,
            "tokens_per_second": 4700.0,
            "grad_norm": 1 / step + (50 if step == steps // 2 else 0),
            "learning_rate": 6e-4,
            "mfu": 0.4,
        }
        if step % valid_every == 0:
            yield {"step": step, "valid_loss": 2.1, "valid_bits_per_byte": 1.3}


def write_metrics(path, steps=50, valid_every=10):
    path.write_text("".join(json.dumps(row) + "\n" for row in metrics(steps, valid_every)))


class Page(html.parser.HTMLParser):
    """Tags, ids and headings of a page; fails on a tag that is closed out of order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.headings, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_a_full_report_has_every_section_and_stands_alone(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl")
    report.write(tmp_path, FULL)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Page(text)
    assert seen.headings == [
        "Data",
        "Against n-grams",
        "Curves",
        "Samples",
        "Mixture",
        "Tokenizer",
        "Parameters",
        "Wall time",
        "Machine",
        "Config",
    ]
    assert seen.tags.count("svg") == 5
    assert "script" not in seen.tags and "img" not in seen.tags
    for name, value in seen.attributes:  # nothing is fetched: only references into the page, and an empty icon
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#") or value == "data:,"
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
    assert references and set(references) <= set(ids)
    assert "The model needs 1.200 bits per byte of held-out text: 33% fewer than the 5-gram baseline (1.800)." in text
    for cell in (
        "5,000,000",
        "1,200",
        "14.01M",
        "3.277B",
        "41.3 %",
        "2 h 01 min",
        "model.rotary.base",
        "8 × cpu cpu",
        "75.0 %",
        "step 900",
        "4.56",
    ):
        assert cell in text, cell
    assert "Split by the hash of the path." in text
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved.pop("verdict").startswith("The model needs 1.200 bits per byte of held-out text: 33% fewer")
    assert saved == plain(FULL)
    assert saved["data"]["sources"]["stdlib"]["rows"] == 70
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "report.json"]


def test_text_of_the_model_and_of_the_user_is_escaped(tmp_path):
    report.write(tmp_path, FULL)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert "tiny &lt;run&gt;" in text
    assert "a&lt;b" in text


@pytest.mark.parametrize("missing", [*FULL, "all"])
def test_a_missing_part_leaves_its_section_out(missing):
    partial = {} if missing == "all" else {key: value for key, value in FULL.items() if key != missing}
    drawn = Page(report.html(plain(partial)))
    assert len(drawn.headings) < 10


@pytest.mark.parametrize("part", ["data", "mixture", "validation", "throughput", "training", "tokenizer", "stages", "config"])
def test_an_empty_or_null_part_is_a_missing_one(part):
    for value in ({}, None):
        Page(report.html(plain(FULL | {part: value})))


def test_values_that_are_unknown_are_left_out():
    unknown = {key: dict.fromkeys(FULL[key]) for key in ("validation", "throughput", "training", "tokenizer", "stages")}
    text = report.html(plain(FULL | unknown))
    assert "None" not in text
    assert "Against n-grams" not in text


def test_an_unfinished_run_says_so_and_how_far_it_got(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl", steps=7)
    report.write(tmp_path, {"finished": False})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This run is not finished: its metrics reach step 7." in text
    assert "<h3>Loss</h3>" in text
    assert "<h3>Bits per byte</h3>" not in text


def test_a_long_run_stays_small(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl", steps=10_000, valid_every=100)
    report.write(tmp_path, FULL)
    assert (tmp_path / "report.html").stat().st_size < 500_000


def test_losses_that_are_not_finite_are_drawn_around_and_saved_as_null(tmp_path):
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write(tmp_path, {"validation": {"loss": math.nan, "bits_per_byte": math.inf, "5-gram": 1.8}})
    assert json.loads((tmp_path / "report.json").read_text())["validation"]["loss"] is None
    assert "<h3>Loss</h3>" in (tmp_path / "report.html").read_text()


def test_load_metrics_survives_a_kill_and_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 2, "valid_loss": 2.6, "valid_bits_per_byte": 1}\n'
        '{"step": 3, "lo{"step": 2, "loss": 2.4}\n[1]\n{"loss": 1}\n\n{"step": 2, "loss": 2.3}\n{"step": 3, "los'
    )
    train, valid = history.load_metrics(path)
    assert train == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.3}]
    assert valid == [{"step": 2, "valid_loss": 2.6, "valid_bits_per_byte": 1}]
    assert history.load_metrics(tmp_path / "absent.jsonl") == ([], [])


def test_a_failed_write_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch):
    report.write(tmp_path, {"title": "old"})
    old = (tmp_path / "report.json").read_text()
    monkeypatch.setattr(page.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(tmp_path, {"title": "new"})
    assert (tmp_path / "report.json").read_text() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    "validation, sentence",
    [
        ({}, None),
        ({"5-gram": 1.8}, None),
        ({"bits_per_byte": 1.2}, "The model needs 1.200 bits per byte of held-out text."),
        (
            {"bits_per_byte": 2.0, "unigram": 4.8, "5-gram": 1.8},
            "The model needs 2.000 bits per byte of held-out text: 11% more than the 5-gram baseline (1.800).",
        ),
    ],
)
def test_the_verdict_is_honest(validation, sentence):
    assert report.verdict(validation) == sentence


def test_continued_pretraining_shows_where_it_began(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl", steps=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "valid_loss": 2.5, "valid_bits_per_byte": 1.5}\n')
    report.write(tmp_path, FULL)
    text = (tmp_path / "report.html").read_text()
    assert "Bits per byte of held-out text went from 1.500 to 1.200 (-20.0%): better." in text
    assert "That is 33% fewer than the 5-gram baseline (1.800)." in text
    assert "<b>1.500 → 1.200</b>" in text and "before this run" in text
    assert json.loads((tmp_path / "report.json").read_text())["before"] == {"loss": 2.5, "bits_per_byte": 1.5}
    assert "went from 1.500 to 1.600 (+6.7%): worse." in report.verdict({"bits_per_byte": 1.6}, {"bits_per_byte": 1.5})


@pytest.mark.parametrize("known", ["tflops", "mfu", "both", "neither"])
def test_the_speed_is_shown_as_far_as_it_is_known(known):
    throughput = {
        "tokens_per_second": 4702.4,
        "tflops": 0.25 if known in ("tflops", "both") else None,
        "mfu": 0.413 if known in ("mfu", "both") else None,
        "mfu_formula": "6·N·tokens" if known in ("mfu", "both") else None,
    }
    line = {"step": 1, "loss": 1.0, "tokens_per_second": 9.0} | {key: throughput[key] for key in ("tflops", "mfu")}
    text = report.html({"throughput": throughput}, [line])
    assert ("model TFLOP/s" in text) == (known in ("tflops", "both"))
    assert ("6·N·tokens" in text and "41.3 %" in text) == (known in ("mfu", "both"))
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["Loss", "Throughput"]  # whose curve has the shape of both others
    assert "None" not in text


PROVENANCE = {
    "written": "2026-11-28T03:40:12Z",
    "code": "abc1234 + changes",
    "command": "python train.py --config=configs/train/tiny.py '--config.data.input=a b'",
    "config_file": "configs/train/tiny.py",
    "changed": ["model.layers", "gone"],
    "seconds": 75.0,
}


def test_a_page_says_where_it_comes_from_and_what_to_do_next():
    steps = [{"what": "Let it write", "command": "python -m lm.generate --checkpoint=run"}]
    told = {"provenance": PROVENANCE, "next": [*steps, {"what": "Measure it", "command": "python evaluate.py --data=DIR"}]}
    text = report.html(plain(FULL | told | {"config": FULL["config"] | {"init_from": "base"}}))
    Page(text)
    words = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))
    assert "Written 2026-11-28 03:40 UTC after a run of 1 min 15 s, with configs/train/tiny.py, from the model base" in words
    assert "code: abc1234 + uncommitted changes." in words
    assert "python train.py --config=configs/train/tiny.py '--config.data.input=a b'" in words
    assert "Let it write python -m lm.generate --checkpoint=run" in words and "Replace the words in capitals." in words
    assert text.index("How it was made") < text.index("<h2>Data") < text.index("<h2>Against")
    opened, _, folded = text[text.index("<h2>Config") :].partition("<details>")
    assert "model.layers" in opened and "model.rotary.base" in folded and "gone" not in text


def test_without_a_default_all_keys_are_open():
    for told in ({}, {"provenance": PROVENANCE | {"changed": None}}):
        text = report.html(plain(FULL | told))
        assert "model.rotary.base" in text[text.index("<details open>") :]


def test_numbers_are_written_for_people():
    assert [page.number(x) for x in (1234567, 3.0, 4702.4, 3.125, 0.00123)] == ["1,234,567", "3", "4,702", "3.12", "0.00123"]
    assert [charts.short(x) for x in (3_276_800_000, 20_000, 0.003, 0)] == ["3.277B", "20k", "0.003", "0"]
    assert [page.duration(x) for x in (12.34, 245, 7380)] == ["12.3 s", "4 min 05 s", "2 h 03 min"]


def test_the_machine_is_described_in_plain_values():
    machine = provenance.machine()
    assert machine["cpu"] and machine["cores"] >= 1 and machine["memory_gib"] > 0
    assert machine["python"].count(".") == 2
    assert machine == plain(machine)
