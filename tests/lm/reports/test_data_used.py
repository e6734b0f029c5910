"""The data of a run in short: sources with their files, what was dropped, and epochs."""

import pytest

from lm.reports import data_used

SOURCES = {
    "web": {"documents": 1200, "bytes": 5000, "exact_duplicates": 3, "near_copies": 1, "valid_documents": 7, "valid_bytes": 90},
    "books": {"documents": 10, "bytes": 100, "tokens_packed": 40, "near_copies": 1},
}
TEXT = {
    "config": {"data": {"input": "web=a/*.gz,books=b.txt,web=c", "max_bytes": 9000}},
    "data": {"sources": SOURCES},
    "mixture": {"sources": {"web": {"tokens": 500, "epochs": 0.5}, "books": {"tokens": 160, "epochs": 4.0}}},
}


def test_each_source_has_its_files_counts_and_epochs():
    web, books = data_used.text_sources(TEXT)
    assert web["files"] == "a/*.gz, c" and web["tokens"] is None
    assert books == {
        "source": "books",
        "files": "b.txt",
        "documents": 10,
        "bytes": 100,
        "tokens": 40,
        "read": 160,
        "epochs": 4.0,
    }
    assert data_used.epochs_text([web, books]) == "0.5 – 4"
    assert data_used.epochs_text([books]) == "4"
    assert data_used.epochs_text([{"epochs": None}]) is None


def test_what_was_dropped_held_out_and_cut_from_a_text_is_said():
    assert data_used.text_notes(TEXT) == [
        "Dropped: 3 exact duplicates, 2 near copies of documents that are held out.",
        "Held out for validation: 7 documents (90 bytes).",
        "Each source is cut at data.max_bytes = 9,000 bytes.",
    ]
    assert data_used.text_notes({"data": {"sources": {"a": {"documents": 1}}}}) == ["No document was dropped as a duplicate."]
    assert data_used.text_notes({}) == []


@pytest.mark.parametrize(
    "given, files",
    [
        (None, {}),
        ({"input": None}, {"web": "this Python installation", "b": "this Python installation"}),
        ({"input": "corpus"}, {"web": "corpus", "b": "corpus"}),
        ({"input": "web=x, y, z"}, {"web": "x", "b": "y, z"}),
        ({"input": "other=x"}, {"web": "other=x", "b": "other=x"}),  # a path
    ],
)
def test_the_files_of_a_source(given, files):
    assert data_used.files_of(given, ["web", "b"]) == files


EXAMPLES = {
    "config": {"method": "sft", "batch_size": 4, "data": {"input": "chats.jsonl"}},
    "data": {
        "kind": "conversation",
        "read": {"dropped": {"no answer": 2}},
        "train": {"examples": 50, "rows": 20, "tokens": 900, "trained_tokens": 400, "truncated": 3, "dropped": {"too long": 1}},
        "valid": {"examples": 5, "truncated": 1, "dropped": {"too long": 1}},
    },
    "training": {"steps": 30},
}


def test_the_examples_of_an_alignment_run_are_told_in_sentences():
    assert data_used.example_notes(EXAMPLES) == [
        "50 conversations to train on (900 tokens, 400 of them in the loss) and 5 held out, from chats.jsonl.",
        "Dropped: 2 (no answer), 2 (too long).",
        "Cut at sequence_length: 4.",
    ]
    tasks = {"data": {"tasks": {"kind": "task", "train": {"examples": 7, "dropped": {}}}}}
    assert data_used.example_notes(tasks) == ["7 prompts to train on.", "No example was dropped."]
    assert data_used.example_notes({"data": {"read": {"dropped": {"x": 1}}}}) == []


def test_epochs_of_an_alignment_run():
    assert data_used.alignment_epochs(EXAMPLES) == 30 * 4 / 20
    tasks = {"tasks": {"train": {"examples": 60}}}
    rl = {"config": {"method": "rl", "batch_size": 64, "rl": {"group_size": 8}}, "data": tasks, "training": {"steps": 30}}
    assert data_used.alignment_epochs(rl) == 30 * 8 / 60  # a prompt has eight rollouts
    assert data_used.alignment_epochs(rl | {"config": {"method": "distill", "batch_size": 6, "rl": {"group_size": 8}}}) == 3
    for missing in ("config", "data", "training"):
        assert data_used.alignment_epochs(EXAMPLES | {missing: None}) is None
