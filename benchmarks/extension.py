"""Does a small model find a fact at 32,768 tokens after a short extension from 2,048, and which small test says so before?

python -m benchmarks.extension [--seeds=0,1,2] [--methods=theta,yarn,none,short] [--texts=20] [--out=runs/extension]

Of each seed, a model of 0.6 M parameters learns to look up facts (" Zabo is Keri.") in rows of 64 tokens, then in stages up to
2,048 tokens. There the facts stand in the Python library's source, and half of the tokens are source that is trained as text.
That is the 2k model. From it each method goes on in two stages, with rows of 8,192 and of 32,768 tokens:

  theta  the base of the rotary angles is raised (extend.theta)
  yarn   YaRN (extend.yarn)
  none   control: the same rows, positions as they were
  short  control: as many tokens of the same kinds, in rows of 2,048

There a quarter of the tokens are look-ups of all lengths, the rest source in documents of at most 2,048 tokens. Documents
share rows and do not see each other. The table has, of each model: `needle`, the share of facts that are answered exactly at
the end of a text of so many tokens, of 8 in each of TEXTS texts, with a 95 % interval; `far`, the small test: the same in 64
texts of 256 tokens, of which the questions get positions up to 32,768 away from the facts, with nothing between; and `bpb`,
bits per byte of held-out source in windows of 2,048 and of 32,768 tokens. Stages whose report exists, and measured models, are
kept. The last line is one JSON object.
"""

import argparse
import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from benchmarks.agent_rl import verb
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.evals.stats import intervals
from lm.files import saving

SHORT, LENGTHS = 2048, (2048, 8192, 32768)
ASKED, FAR_TEXTS, FAR_TOKENS = 8, 64, 256  # questions of a text, and texts and tokens of the small test
NAMES = [f" {a}{b}{c}{d}" for a in "KMRTZ" for b in "aio" for c in "blnv" for d in "ou"]
VALUES, NAMES = NAMES[::3], [name for n, name in enumerate(NAMES) if n % 3]
END = "<|endoftext|>"
TEMPLATE = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{%- generation -%}{{ message.content }}"
    "{%- endgeneration -%}{%- else -%}{{ message.content }}{%- endif -%}{%- endfor -%}"
)
MODEL = {
    "vocab_size": 1280,
    "num_layers": 2,
    "embed_dim": 128,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 32,
    "mlp_dim": 256,
    "attention_pattern": "('conv','global')",
    "init": "gpt2",
    "qk_norm": "head",
    "rope.theta": 10_000.0,
    "scan_layers": False,
    "remat": "none",
}
COMMON = {
    "optimizer.name": "normuon",  # learns look-ups in 60 steps; AdamW had not after 1,000
    "optimizer.final": 0.0,  # rates decay to nothing, which the loss at short lengths needs most
    "valid_every": 0,
    "valid_first": False,
    "checkpoint_every": 10**6,
    "num_samples": 0,
    "samples_every": 0,
}
METHODS = {"theta": {"extend.theta": 1_000_000.0}, "yarn": {"extend.yarn": 16.0}, "none": {}, "short": {}}


class Stage(NamedTuple):
    """length: tokens of a row. rows: of a step. text: share of the tokens that are source text."""

    name: str
    length: int
    rows: int
    steps: int
    rate: float
    text: float = 0.5


TO_SHORT = (Stage("64", 64, 64, 200, 5e-3, 0.0), Stage("512", 512, 16, 100, 5e-3), Stage("2k", SHORT, 8, 200, 4e-3))
LONGER = (Stage("8k", 8192, 4, 36, 2e-3, 0.75), Stage("32k", 32768, 2, 24, 2e-3, 0.75))


class Corpus(NamedTuple):
    """Token ids of the source files: those to train on, and those held out."""

    tokenizer: Tokenizer
    train: np.ndarray
    valid: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--texts", type=int, default=20, help="texts of a length, each with 8 questions")
    parser.add_argument("--out", type=Path, default=Path("runs/extension"))
    options = parser.parse_args()
    out = options.out.resolve()
    corpus, found = prepared(out), {}
    for seed in map(int, options.seeds.split(",")):
        folder = out / str(seed)
        start = through(TO_SHORT, None, folder, corpus, seed)
        found.setdefault("2k", []).append(measured(start, folder / "2k.json", corpus, options.texts))
        for method in options.methods.split(","):
            end = through(stages_of(method), start, folder, corpus, seed, method)
            found.setdefault(method, []).append(measured(end, folder / f"{method}.json", corpus, options.texts))
        print(f"seeds up to {seed}\n{table(found)}", flush=True)
    figures = {name: [{key: row[key] for key in row if key != "hits"} for row in rows] for name, rows in found.items()}
    print(json.dumps(figures))


def prepared(out: Path) -> Corpus:
    """Return the library's source as tokens, after training the tokenizer, which has each name as one token."""
    root, texts = Path(sysconfig.get_paths()["stdlib"]), []
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if text.isascii() and not {"test", "tests", "site-packages", "idlelib"} & {*file.relative_to(root).parts}:
            texts.append(text)
    random.Random(0).shuffle(texts)
    if not (out / "tokenizer" / "tokenizer_config.json").exists():
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=MODEL["vocab_size"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[END],
            show_progress=False,
        )
        made.train_from_iterator([*texts[::4], "".join(NAMES + VALUES) * 10_000], trainer)
        saving.write(out / "tokenizer" / "tokenizer.json", made.to_str())
        saving.write(out / "plain.jinja", TEMPLATE)
        saving.write(out / "tokenizer" / "tokenizer_config.json", json.dumps({"eos_token": END}))
    tokenizer = load_tokenizer(out / "tokenizer")
    held = max(1, len(texts) // 12)
    valid, train = (np.asarray(tokenizer.encode("".join(some))) for some in (texts[:held], texts[held:]))
    saving.write_lines(out / "text.jsonl", ({"text": text} for text in texts[held:][:50]))
    return Corpus(tokenizer, train, valid)


def stages_of(method: str) -> tuple[Stage, ...]:
    """Return the stages after the 2k model; those of `short` have as many tokens in rows of 2,048."""
    if method != "short":
        return LONGER
    return tuple(stage._replace(length=SHORT, rows=stage.rows * stage.length // SHORT) for stage in LONGER)


def through(stages: tuple[Stage, ...], start: Path | None, out: Path, corpus: Corpus, seed: int, method: str = "") -> Path:
    """Train through stages from `start`, None for random weights; return the last workdir."""
    root = out.parent
    if start is None:
        start = out / "random"
        keys = {"data.input": root / "text.jsonl", "tokenizer": root / "tokenizer", "steps": 1, "batch_size": 4, "seed": seed}
        once(start, "train", "tiny", keys | {"samples": "()", "valid_every": 0} | {f"model.{k}": v for k, v in MODEL.items()})
    for n, stage in enumerate(stages):
        workdir = out / f"{method}{stage.name}"
        examples = out / f"{'short' * (method == 'short')}{stage.name}.jsonl"
        if not (workdir / "report.json").exists() and not examples.exists():
            draw = random.Random(f"{seed} {stage.name}")
            saving.write_lines(examples, documents(stage, corpus, draw))
        keys = {"init_from": start, "data.input": examples, "chat_template": root / "plain.jinja", "seed": seed}
        keys |= {"sequence_length": stage.length, "batch_size": stage.rows, "steps": stage.steps, "data.valid_fraction": 0.01}
        keys |= {"optimizer.learning_rate": stage.rate, "data.max_valid_examples": 4}
        once(workdir, "align", "sft", keys | COMMON | (METHODS[method] if method and n == 0 else {}))
        start = workdir
    return start


def once(workdir: Path, name: str, config: str, keys: dict) -> None:
    if not (workdir / "report.json").exists():
        verb(name, f"{name}/{config}.py", workdir, keys)


def documents(stage: Stage, corpus: Corpus, draw: random.Random) -> Iterator[dict]:
    """Yield conversations of a stage: look-ups of mixed lengths, of which only answers are trained, and source text."""
    left, texts = stage.steps * stage.rows * stage.length * 1.1, 0.0
    while left > 0:
        if texts < 0:  # the share of text is behind
            size = draw.choice((256, 512, 1024, SHORT - 48)) if stage.length >= SHORT else stage.length - 16
            begin = draw.randrange(len(corpus.train) - size)
            first, rest = (corpus.tokenizer.decode(part) for part in np.split(corpus.train[begin : begin + size], [8]))
            yield {"prompt": first, "completion": rest}
            texts += size * (1 - stage.text)
        else:
            size = 64
            if stage.length > 64:  # mostly long: short ones fill the rows
                low = stage.length // 4 if draw.random() < 0.6 else 64
                size = draw.randrange(low, stage.length - stage.length // 64 - 8)
            yield {"messages": spoken(corpus.tokenizer, *lookup(size, corpus.train, draw))}
            texts -= size * stage.text
        left -= size


def lookup(size: int, hay: np.ndarray, draw: random.Random, asked: int = 0) -> tuple[list, list]:
    """Return about `size` tokens of look-up: parts of facts (str) and of hay (array), and questions as (name, value).

    asked: facts and questions; 0: as many as a training text of this size has.
    """
    count = asked or min(5 + size // 200, len(NAMES))
    names = draw.sample(NAMES, count)
    facts = [(name, draw.choice(VALUES)) for name in names]
    questions = draw.sample(facts, count)
    if not asked and size <= 64:
        questions = [draw.choice(facts) for _ in range(size // 4 - count)]
    room = max(0, size - 4 * (len(facts) + len(questions)))
    begin = draw.randrange(len(hay) - room)
    places = sorted(draw.randint(0, room) for _ in facts)
    pieces = np.split(hay[begin : begin + room], places)
    parts = [part for piece, fact in zip(pieces, facts) for part in (piece, " is".join(fact) + ".")]
    return [*parts, pieces[-1]], questions


def spoken(tokenizer: Tokenizer, parts: list, questions: list[tuple[str, str]]) -> list[dict]:
    """Return a look-up as messages."""
    text = "".join(part if isinstance(part, str) else tokenizer.decode(part) for part in parts)
    messages = []
    for name, value in questions:
        messages += [{"role": "user", "content": f"{text}{name} is"}, {"role": "assistant", "content": f"{value}."}]
        text = ""
    return messages


def encoded(tokenizer: Tokenizer, parts: list, questions: list[tuple[str, str]]) -> list[int]:
    """Return the tokens of a look-up; each question with its answer has the last four."""
    ids = [i for part in parts for i in (tokenizer.encode(part) if isinstance(part, str) else part.tolist())]
    return ids + [i for question in questions for i in tokenizer.encode(" is".join(question) + ".")]


def measured(workdir: Path, file: Path, corpus: Corpus, texts: int) -> dict:
    """Return {"needle 2048": share, …, "far": share, "bpb 2048": …, "hits": {name: [[bool, …] of each text]}}."""
    if file.exists():
        return json.loads(file.read_text())
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import lm
    from lm.model.inputs import Inputs

    graph, state = nnx.split(lm.load(workdir)[0])

    @jax.jit
    def predicted(state, tokens_BT, positions_BT):
        """Whether each of the answers' two tokens is the most likely one: bool [B, ASKED]."""
        model, places = nnx.merge(graph, state), tokens_BT.shape[1] + np.arange(-4 * ASKED, 0).reshape(ASKED, 4)[:, 2:]
        x_BTD = model.hidden(Inputs(tokens_BT, positions_BT=positions_BT)).x_BTD[:, places.ravel() - 1]
        right = jnp.argmax(model.logits(x_BTD), axis=-1) == tokens_BT[:, places.ravel()]
        return right.reshape(-1, ASKED, 2).all(axis=-1)

    @jax.jit
    def nats(state, tokens_BT):
        logits_BTV = jax.nn.log_softmax(nnx.merge(graph, state)(tokens_BT)[:, :-1])
        return -jnp.sum(jnp.take_along_axis(logits_BTV, tokens_BT[:, 1:, None], axis=-1))

    draw, hits = random.Random(1), {}
    for name, count, size in [(f"needle {size}", texts, size) for size in LENGTHS] + [("far", FAR_TEXTS, FAR_TOKENS)]:
        hits[name] = []
        for _ in range(count):
            tokens_T = np.asarray(encoded(corpus.tokenizer, *lookup(size, corpus.valid, draw, ASKED)))
            positions_T = np.arange(size)
            if name == "far":  # the questions move away from the facts
                positions_T[size - 4 * ASKED :] += draw.randrange(LENGTHS[-1] - size)
            hits[name].append(np.asarray(predicted(state, tokens_T[None], positions_T[None]))[0].tolist())
    found = {name: float(np.mean(rows)) for name, rows in hits.items()}
    for size, most in ((SHORT, 64), (LENGTHS[-1], 4)):
        windows = corpus.valid[: len(corpus.valid) // size * size].reshape(-1, size)[:most]
        total = sum(float(nats(state, window[None])) for window in windows)
        bytes_ = sum(len(corpus.tokenizer.decode(window[1:])) for window in windows)
        found[f"bpb {size}"] = total / bytes_ / math.log(2)
    found["hits"] = hits
    saving.write_json(file, found)
    return found


def table(found: dict[str, list[dict]]) -> str:
    """Return the rows of a Markdown table: means over seeds, with the interval of the shares over texts and seeds."""
    names = [*(f"needle {size}" for size in LENGTHS), "far", *(f"bpb {size}" for size in (SHORT, LENGTHS[-1]))]
    lines = [f"| model | seeds | {' | '.join(names)} |", f"| --- |{' --- |' * (len(names) + 1)}"]
    for model, rows in found.items():
        cells = []
        for name in names:
            mean = float(np.mean([row[name] for row in rows]))
            cells.append(f"{mean:.4f}")
            if name in rows[0]["hits"]:
                texts = [text for row in rows for text in row["hits"][name]]
                groups = [n % len(rows[0]["hits"][name]) for n, text in enumerate(texts) for _ in text]
                low, high = intervals.of_share([float(hit) for text in texts for hit in text], groups)
                cells[-1] = f"{mean:.3f} ({low:.3f}–{high:.3f})"
        change = np.mean([row["bpb 2048"] / start["bpb 2048"] - 1 for row, start in zip(rows, found["2k"])])
        cells[4] += f" ({change:+.2%})"
        lines.append(f"| {model} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
