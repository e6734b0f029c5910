"""Does a student learn more from a text with a teacher of another tokenizer than from the text alone, in equal steps?

    python curate.py --config=configs/curate/demo.py --workdir=runs/cross/corpus
    python -m benchmarks.cross_distill --corpus=runs/cross/corpus --out=runs/cross [-- --config.distill.across=uld]

Three quarters of the documents are the teacher's: it has 3 M parameters (20 M with --large) and a byte-level BPE vocabulary
as Qwen's, made from them. The student (1.4 M) has a SentencePiece vocabulary. Few passages of the other documents are the
text: neither model has read those. Each seed trains a student for a few steps on documents of the teacher, then three times
from there: by `sft` on the text alone, by `distill` with teacher and text in equal parts, and, as a negative control, by
`distill` with a teacher that is not trained. All see the same batches at the same learning rate. Finished runs are kept.

Prints bits per byte of the held-out passages, of the teacher and of each student before and after, and the paired differences.
"""

import argparse
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data.text.tokenizer import load_tokenizer

END, CUT, LONG = "<|endoftext|>", 80, 480  # the end symbol; characters of a prompt, and of a passage
TEMPLATE = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{%- generation -%}{{ message.content }}"
    "{%- endgeneration -%}{%- else -%}{{ message.content }}{%- endif -%}{%- endfor -%}"
)
LARGE = {"num_layers": 8, "embed_dim": 448, "num_heads": 7, "num_kv_heads": 7, "head_dim": 64, "mlp_dim": 1152}
STUDENT = {"num_layers": 3, "embed_dim": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "mlp_dim": 384}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cross"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--examples", type=int, default=300, help="passages to train on")
    parser.add_argument("--vocab_size", type=int, default=3072, help="tokens of the student")
    parser.add_argument("--large", action="store_true", help="a teacher of 20 M parameters in place of 3 M")
    parser.add_argument("--teacher_steps", type=int, default=600)
    parser.add_argument("options", nargs="*", help="more flags of the distillation, after --")
    given = parser.parse_args()
    texts = [
        text
        for file in sorted((given.corpus / "documents").glob("*.parquet"))
        for text in pq.read_table(file)["text"].to_pylist()
    ]
    written(given.out, texts)
    data = {"data.input": given.out / "teacher_text", "valid_every": 10**6, "checkpoint_every": 10**6}
    keys = data | {"tokenizer": given.out / "byte_level", "model.vocab_size": 4096}
    keys |= {f"model.{name}": value for name, value in LARGE.items()} if given.large else {}
    verb("train.py", "train/demo", given.out / "teacher", keys | {"steps": given.teacher_steps, "data.max_bytes": 12_000_000})
    verb("train.py", "train/demo", given.out / "untrained", keys | {"steps": 1, "data.max_bytes": 500_000})
    rows = [measured(given, data, seed) for seed in range(given.seeds)]
    for name in ("distilled", "control"):
        apart = np.asarray([row[name] - row["text_alone"] for row in rows])
        error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        print(json.dumps({f"{name} − text_alone": round(float(apart.mean()), 4), "standard error": round(float(error), 4)}))


def written(out: Path, texts: list[str]) -> None:
    """Write the teacher's documents and tokenizer, the passages and the template, if they are not there."""
    if (out / "passages.jsonl").exists():
        return
    theirs = [text for i, text in enumerate(texts) if i % 4]
    for folder in ("teacher_text", "byte_level"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "teacher_text" / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in theirs))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    made.train_from_iterator(theirs[::2], trainer)
    made.save(str(out / "byte_level" / "tokenizer.json"))
    (out / "byte_level" / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (out / "plain.jinja").write_text(TEMPLATE)
    passages = [text[at : at + LONG] for text in texts[::4] for at in range(0, len(text) - LONG, LONG)]
    random.Random(0).shuffle(passages)
    rows = [{"prompt": passage[:CUT], "completion": passage[CUT:]} for passage in passages]
    (out / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(given, data: dict, seed: int) -> dict:
    """Return bits per byte of the teacher and of a seed's student: before, text_alone, distilled, control."""
    start = given.out / f"student{seed}"
    model = {f"model.{name}": value for name, value in STUDENT.items()} | {"model.vocab_size": given.vocab_size}
    verb("train.py", "train/demo", start, data | model | {"steps": 40, "seed": seed, "data.max_bytes": 1_500_000})
    common = {
        "init_from": start,
        "data.input": given.out / "passages.jsonl",
        "chat_template": given.out / "plain.jinja",
        "data.max_valid_examples": 128,
        "data.max_examples": given.examples,
        "data.valid_fraction": 0.1,
        "sequence_length": 128,
        "batch_size": 8,
        "steps": given.steps,
        "seed": seed,
        "num_samples": 0,
        "optimizer.learning_rate": 2e-3,
        "checkpoint_every": 10**6,
        "valid_every": 10**6,
        "model.scan_layers": False,
    }
    verb("align.py", "align/sft", given.out / f"alone{seed}", common)
    for name, teacher in (("distilled", "teacher"), ("control", "untrained")):
        keys = common | {"distill.teacher": given.out / teacher, "distill.mix": 0.5}
        verb("align.py", "align/distill", given.out / f"{name}{seed}", keys, given.options)
    # All runs hold out the same passages: bits per token become bits per byte by the bytes of a token.
    rate = bytes_per_token(start, given.out) * math.log(2)
    first, last = valid(given.out / f"distilled{seed}")
    bits = {"before": first["valid_nll"], "text_alone": valid(given.out / f"alone{seed}")[1]["valid_loss"]}
    bits |= {"distilled": last["valid_nll"], "control": valid(given.out / f"control{seed}")[1]["valid_nll"]}
    bits["teacher"] = last["valid_teacher_nll"]
    row = {"seed": seed, "aligned": round(last["valid_aligned"], 3)} | {name: round(x / rate, 4) for name, x in bits.items()}
    print(json.dumps(row), flush=True)
    return row


def valid(workdir: Path) -> tuple[dict, dict]:
    """Return the first and the last validation of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "valid_loss" in line]
    return found[0], found[-1]


def bytes_per_token(student: Path, out: Path) -> float:
    """Return the mean number of bytes of a token of the passages."""
    tokenizer = load_tokenizer(student)
    rows = [json.loads(line)["completion"] for line in (out / "passages.jsonl").read_text().splitlines()[::20]]
    return sum(len(row.encode()) for row in rows) / sum(len(tokenizer.encode(row)) for row in rows)


def verb(name: str, config: str, workdir: Path, keys: dict, options=()) -> None:
    """Run a verb to its report, unless its report is there."""
    if (workdir / "report.json").exists():
        return
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    command = [sys.executable, name, f"--config=configs/{config}.py", f"--workdir={workdir}", *flags, *options]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
