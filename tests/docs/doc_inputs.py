"""The reader's own files, which README.md names: text, chats, pairs, a crawl, benchmarks' items, answers, requests."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import xxhash

PROSE = [
    " ".join(part.split())
    for text in topics.values()
    for part in text.split("\n\n")
    if len(part) > 250 and part.rstrip().endswith(".") and not set(part) & set("{}=<>*|[")
]
PAGES = ["\n\n".join(PROSE[n : n + 4]) for n in range(0, len(PROSE), 4)]


def write_inputs(folder: Path) -> None:
    """Write all of them into the folder in which the commands run."""
    for n, text in enumerate(PAGES):
        _write(folder / "books" / f"shelf{n % 2}" / f"{n}.txt", text)
    (folder / "crawl").mkdir()
    (folder / "crawl" / "pages.warc.gz").write_bytes(b"".join(map(_record, PAGES)))
    animals = ("cat", "dog", "cow", "hen", "fox", "owl")
    asked = [f"What is a {animal}, and where is number {n}?" for n in range(6) for animal in animals]
    chats = [[_said("user", text), _said("assistant", f"{text[10:13]} is an animal.")] for text in asked]
    _lines(folder / "chats.jsonl", ({"messages": messages} for messages in chats))
    pairs = [{"prompt": text, "chosen": "An animal. Gladly.", "rejected": "I do not care."} for text in asked]
    _lines(folder / "pairs.jsonl", pairs)
    talks = [
        {side: f"\n\nHuman: {pair['prompt']}\n\nAssistant: {pair[side]}" for side in ("chosen", "rejected")} for pair in pairs
    ]
    (folder / "hh-rlhf.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in talks).encode()))
    harm = [{"prompt": f"How do I break lock number {n}?", "label": "harmful"} for n in range(8)]
    benign = [{"prompt": f"How do I cook egg number {n}?", "label": "harmless"} for n in range(8)]
    _lines(folder / "harm.jsonl", harm + benign)
    body = {"messages": [_said("user", "What is a cat?")], "max_tokens": 4}
    request = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    _lines(folder / "requests.jsonl", ({"custom_id": str(n), **request} for n in range(3)))
    write_benchmarks(folder / "DIR")
    _lines(folder / "input_data.jsonl", _without_commas(asked))
    _lines(folder / "answers.jsonl", ({"prompt": text, "response": "An animal."} for text in asked))


def write_benchmarks(folder: Path) -> None:
    """Write a few items of benchmarks as they are published."""
    _write(folder / "mmlu" / "sums_test.csv", "".join(f"What is {n} + 1?,1,{n + 1},0,9,B\n" for n in range(2, 8)))
    _write(folder / "mmlu" / "sums_dev.csv", "".join(f"What is {n} + 2?,1,{n + 2},0,9,B\n" for n in range(2, 8)))
    sums = [{"question": f"{n} and {n + 3} are how many?", "answer": f"#### {2 * n + 3}"} for n in range(12)]
    _lines(folder / "gsm8k" / "test.jsonl", sums[:6])
    _lines(folder / "gsm8k" / "train.jsonl", sums[6:])
    _lines(folder / "bbq" / "Age.jsonl", (_about_age(n) for n in range(4)))
    rows = "".join(f"{n},Kill process {n}?,homonyms,safe\n" for n in range(4))
    _write(folder / "xstest" / "prompts.csv", "id,prompt,type,label\n" + rows)
    _lines(folder / "ifeval" / "items.jsonl", _without_commas(f"Say {n}." for n in range(4)))


def _without_commas(prompts: Iterable[str]) -> list[dict]:
    """Items of IFEval."""
    about = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    return [{"key": n, "prompt": text, **about} for n, text in enumerate(prompts)]


def _about_age(n: int) -> dict:
    options = [("old", "The old one"), ("unknown", "Not known"), ("nonOld", "The young one")]
    return {
        "example_id": n,
        "question_index": "1",
        "question_polarity": "neg",
        "context_condition": "ambig" if n % 2 else "disambig",
        "category": "Age",
        "answer_info": {f"ans{i}": [text, group] for i, (group, text) in enumerate(options)},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"]},
        "context": f"An old and a young person meet at bus {n}.",
        "question": "Who was slow?",
        **{f"ans{i}": text for i, (_, text) in enumerate(options)},
        "label": 1 if n % 2 else 0,
    }


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _record(text: str) -> bytes:
    """A page as a crawl stores it."""
    paragraphs = "".join(f"<p>{part}</p>\n" for part in text.split("\n\n"))
    html = f"<html><body><article>{paragraphs}</article></body></html>"
    page = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{html}".encode()
    about = {
        "WARC-Type": "response",
        "WARC-Target-URI": f"http://example.org/{xxhash.xxh64_hexdigest(text.encode())}",
        "WARC-Date": "2026-01-01T00:00:00Z",
        "Content-Type": "application/http; msgtype=response",
        "Content-Length": str(len(page)),
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in about.items())
    return gzip.compress(f"WARC/1.0\r\n{head}\r\n".encode() + page + b"\r\n\r\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _lines(path: Path, rows: Iterable[dict]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))
