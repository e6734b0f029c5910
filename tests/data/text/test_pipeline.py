"""From text to rows in two passes, the same however many processes work."""

import pytest

from configs.train import tiny
from data.sources.source import Source
from data.text import pipeline
from data.text.pipeline import prepare_text
from tests.data.chat.test_examples import write
from tests.data.text.test_sentencepiece_tokenizer import corpus


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "text.jsonl", [{"text": f"{n} {text}"} for n, text in enumerate(corpus()) if n < 60])
    config = tiny.get_config()
    config.sequence_length, config.model.vocab_size = 64, 320
    config.data.update({"input": str(tmp_path / "text.jsonl"), "valid_fraction": 0.1})
    return config


@pytest.mark.parametrize("given", [False, True])
def test_the_text_is_read_twice(config, tmp_path, monkeypatch, given):
    if given:
        prepare_text(config, tmp_path / "first")
        config.tokenizer = str(tmp_path / "first" / "tokenizer.model")
    reads, opened = [], pipeline.open_sources

    def counted(*args, **kwargs):
        (source,) = opened(*args, **kwargs)
        return [Source(source.name, lambda: reads.append(1) or source.read())]

    monkeypatch.setattr(pipeline, "open_sources", counted)
    prepare_text(config, tmp_path / "run")
    assert len(reads) == 2
