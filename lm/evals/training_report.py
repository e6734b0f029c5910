"""What a finished run reports: gathers data counts, validation beside n-gram baselines, samples, speed and time."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from flax import nnx

from data.dataset import open_split, prepared
from data.tokenizer import Tokenizer
from lm.checkpoint import plain
from lm.cli import write_json
from lm.evals import ngram, report
from lm.infer.sampler import generate
from lm.model.transformer import skeleton
from lm.progress import progress
from lm.train.speed import FORMULA, peak_flops
from lm.train.step import model_config_of
from lm.workdir import kept_json

BASELINE_BYTES = 256_000_000  # of training text that the n-grams are fitted on, at most
SAMPLE_TOKENS = 96


def write_report(
    config, workdir: Path, dataset: Path, tokenizer: Tokenizer, result: dict, stages: dict[str, float],
    samples: list[dict[str, str]],
) -> None:  # fmt: skip
    """Writes report.json and report.html. Of several processes the first calls this alone; nothing in it is collective.

    Args: result: of lm.train.loop.train. stages: seconds of each stage of this process; those of earlier processes of
    the same run are added to them. samples: of `drawn`.
    """
    counts = prepared(dataset)
    train_lines, _ = report.load_metrics(workdir / "metrics.jsonl")
    validation = None
    if result["valid"]:
        validation = {**result["valid"], **_baselines(dataset, tokenizer, counts)}
    rates = [line["tokens_per_second"] for line in train_lines[1:] if line.get("tokens_per_second")]
    used = [line["mfu"] for line in train_lines[1:] if line.get("mfu")]
    peak, source = peak_flops(config.dtype)
    packed = sum(source["train"]["tokens_packed"] for source in counts["sources"].values())
    report.write(
        workdir,
        {
            "title": f"lmcraft run {workdir.name}",
            "finished": result["step"] >= config.steps,
            "config": config.to_dict(),
            "machine": report.machine(),
            "parameters": result["num_params"],
            "parameter_table": parameter_table(result["params"]),
            "data": {"sources": {name: _flat(source) for name, source in counts["sources"].items()}},
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": sum(s["train"]["bytes"] for s in counts["sources"].values()) / max(1, packed),
            },
            "validation": validation,
            "samples": samples,
            "throughput": {
                "tokens_per_second": statistics.median(rates) if rates else None,
                "mfu": statistics.median(used) if used else None,
                "mfu_formula": f"{FORMULA} = {peak / 1e12:.3g} TFLOP/s ({source})",
            },
            "stages": _all_stages(workdir, stages),
            "training": {"steps": result["step"], "tokens": result["tokens"], "skipped": result["skipped"]},
        },
    )


def drawn(config, params: nnx.State, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Return {"prompt", "text"} of each of config.samples, continued by the model on the mesh that is set.

    Every process calls this: the parameters may be spread over all of them, and no single device may hold them.
    """
    prompts = list(config.samples)
    if not prompts:
        return []
    model = nnx.merge(skeleton(model_config_of(config))[0], params)
    texts = generate(model, tokenizer, prompts, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=config.seed)
    return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]


def parameter_table(params) -> dict[str, int]:
    """Parameters by part: embedding, head, and each kind of sublayer over all layers."""
    table: dict[str, int] = {}

    def walk(node, names):
        for name, child in node.items():
            if isinstance(child, dict):
                walk(child, [*names, name])
            else:
                part = " ".join(n for n in names if n != "layers") or name
                table[part] = table.get(part, 0) + child.size

    walk(plain(params), [])
    return table


def texts(dataset: Path, split: str, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[bytes]:
    """The text of a split as it was packed, piece by piece: every byte that is a target once, and no other."""
    seen = 0
    for name, counts in prepared(dataset)["sources"].items():
        if not counts[split]["rows"]:
            continue
        rows = open_split(dataset, name, split)
        for begin in range(0, len(rows), 256):
            for row in rows.__getitems__(list(range(begin, min(begin + 256, len(rows))))):
                tokens, segments = row["tokens"], row["segment_ids"]
                for segment in range(1, int(segments.max()) + 1):
                    # A piece's first token is the begin symbol, or the last target of the piece before.
                    piece = tokenizer.decode_bytes(tokens[segments == segment][1:])
                    seen += len(piece)
                    yield piece
            if limit is not None and seen >= limit:
                return


def _baselines(dataset: Path, tokenizer: Tokenizer, counts: dict) -> dict[str, float]:
    """Bits per byte of byte n-grams fitted on the training text; kept beside the dataset, since they depend on it alone."""
    kept = dataset / "baselines.json"
    if (values := kept_json(kept)) is not None:
        return values
    total = sum(source["train"]["bytes"] for source in counts["sources"].values())
    with progress("n-gram baselines", min(total, BASELINE_BYTES), unit="B", scaled=True) as bar:
        values = ngram.baselines(
            lambda: texts(dataset, "train", tokenizer, BASELINE_BYTES),
            lambda: texts(dataset, "valid", tokenizer),
            progress=bar.update,
        )
    write_json(kept, values)
    return values


def _flat(source: dict) -> dict[str, int]:
    """One source's counts as the report's table names them; rows and tokens are those of both splits."""
    both = {key: source["train"][key] + source["valid"][key] for key in ("tokens_in", "tokens_packed", "tokens_padded", "rows")}
    return {**source["survey"], **both}


def _all_stages(workdir: Path, stages: dict[str, float]) -> dict[str, float]:
    path = workdir / "stages.json"
    before = kept_json(path) or {}
    total = {name: seconds + before.get(name, 0.0) for name, seconds in stages.items()}
    write_json(path, total)
    return total
