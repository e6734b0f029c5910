"""Prepare the encoded examples of a config in the workdir (data/chat/example_files.py), or reuse existing ones.

Examples longer than sequence_length lose their end, as in TRL (truncation_mode="keep_start"). Pairs for a reward model are
dropped instead, because the score is read at the end of an answer. An example without any trained token left is dropped.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data.chat.conversations import Dropped, examples_of, read_examples, split_number
from data.chat.example_encoding import Encoder, Sequenced
from data.chat.example_files import SPLITS, Counts, Examples, Row, load_examples, write_columns
from data.chat.media import rows as media_rows
from data.chat.media.encoding import Towers, encode_conversation, encode_prompt
from data.chat.messages import Example
from data.chat.records import EXTENSIONS, is_builtin, read_records
from data.media.parts import as_text
from data.text.dataset import exclusive
from data.text.fingerprints import INPUT, Files, check_input, digest_of, input_files, is_prepared, record_input, wait_for
from data.text.packing import BUFFER_TOKENS, best_fit
from data.text.tokenizer import Tokenizer
from lm.errors import UserError
from lm.progress import shown

TOKEN_BYTES = 4  # of media that are counted like a token, in the memory of a buffer
BUILTIN_EXAMPLES = 20_000  # default limit for an endless task, if data.max_examples is not set


def prepare_examples(
    config: ml_collections.ConfigDict,
    workdir: Path,
    tokenizer: Tokenizer,
    kind: str,
    *,
    first: bool = True,
    towers: Towers | None = None,
    needs: Sequence[str] = (),
) -> Examples:
    """Read, encode and pack the examples of config.data.input.

    first: whether this process does the work. Other processes wait for it, on the same file system.
    towers: what the model sees and hears, for conversations with images and audio; None: text only.
    needs: media ("images", "audio") that some training example must have.
    The keys used are config.data.{input, valid_fraction, max_examples, max_valid_examples}, config.sequence_length,
    config.seed, config.chat_template (a Jinja file; None: the tokenizer's own), config.sft.thoughts and config.method ("reward"
    does not cut pairs).
    counts.json holds `kind`, `sequence_length`, `read` (dropped records by reason) and the `Counts` of each split.

    Raises: UserError if the input or the template is invalid, if no training example is left, or none has the media of `needs`.
    """
    whole = kind == "pair" and config.method == "reward"
    keys = ("input", "valid_fraction", "max_examples", "max_valid_examples")
    made_from = [kind, whole, config.sequence_length, config.seed, *(config.data[key] for key in keys)]
    towers = towers if kind == "conversation" else None
    thoughts = kind != "conversation" or config.get("sft", {}).get("thoughts", True)
    encoder = Encoder(tokenizer, read_template(config.chat_template), towers and towers.style, thoughts=thoughts)
    made_from += [tokenizer.fingerprint, encoder.template, *([] if thoughts else ["answers only"])]
    if towers is not None:
        made_from.append(towers._replace(style=towers.style.name))
    folder = Path(workdir) / "data" / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
    if not first:
        return wait_for(load_examples, folder)
    data = config.data
    if not is_prepared(folder, load_examples, data.input, lambda: _files(data), digest_of):
        before = _files(data)
        with exclusive(folder.with_name(f".{folder.name}.incomplete")) as incomplete:
            _write(incomplete, config, encoder, kind, whole, towers, needs)
            _record(incomplete, data, before)
            os.rename(incomplete, folder)
    return load_examples(folder)


def prepare_tasks(
    config: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    tools: list[dict] | None = None,
    workdir: Path | None = None,
    *,
    towers: Towers | None = None,
    splits: Sequence[str] = SPLITS,
) -> tuple[list[dict], list[dict], dict[str, Any]]:
    """Return the training tasks and held-out tasks of config.data.input, and counts as in `prepare_examples`.

    A task is {"prompt": messages, "prompt_ids": ids up to the start of the answer, **columns}. The prompt declares the task's
    `tools`, or else the given `tools`. Prompts longer than config.rollout.max_prompt_tokens are dropped and counted, and
    prompts that cannot be encoded, unless it is the first one.
    towers: what the model sees and hears. Then a task also has `prompt_media`, a list of data.chat.media.encoding.Kept.
    splits: those to read; the others are empty.
    Raises: UserError as `prepare_examples`, and if the input differs from the record of `record_tasks` in `workdir`.
    """
    if workdir:
        check_input(_tasks(config.data, workdir), config.data.input, _files(config.data), digest_of)
    encoder = Encoder(tokenizer, read_template(config.chat_template), towers and towers.style)
    most, dropped = config.rollout.max_prompt_tokens, Counter()
    found: dict[str, list[dict]] = {split: [] for split in SPLITS}
    counts: dict[str, Any] = {"kind": "task"}
    for split, examples in _splits(config, "task", dropped).items():
        if split not in splits:
            continue
        count = Counts()
        for example in examples:
            declared, columns, media = example.columns.get("tools") or tools, example.columns, {}
            try:
                if towers is None:
                    ids = encoder.prompt_ids(example.prompt, declared)
                else:
                    seen = encode_prompt(encoder, example.prompt, towers, declared)
                    ids, media = seen.ids.tolist(), {"prompt_media": seen.media}
            except UserError as refused:
                if not found[split]:  # as in `_rows`
                    raise
                count.dropped[str(refused)] += 1
                continue
            if len(ids) > most:
                count.dropped["longer than rollout.max_prompt_tokens"] += 1
                continue
            found[split].append({**columns, "prompt": as_text(example.prompt), "prompt_ids": ids, **media})
            count.tokens += len(ids)
        count.examples = count.rows = len(found[split])
        counts[split] = vars(count) | {"dropped": dict(count.dropped)}
    counts["read"] = {"dropped": dict(dropped)}
    if "train" in splits and not found["train"]:
        raise _none_left(config, counts, f"raise rollout.max_prompt_tokens={most}")
    return found["train"], found["valid"], counts


def held_out_examples(config: ml_collections.ConfigDict, kind: str) -> Iterator[Example]:
    """Return the held-out examples that `prepare_examples` encodes."""
    return iter(_splits(config, kind, Counter()).get("valid", ()))


def record_tasks(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Record the input of the run's tasks once, in workdir/data/tasks-<hash>/input.json; every start compares it."""
    folder = _tasks(config.data, workdir)
    if not (folder / INPUT).exists():
        _record(folder, config.data, None)


def _tasks(data, workdir: Path) -> Path:
    return Path(workdir) / "data" / f"tasks-{hashlib.sha256(str(data.input).encode()).hexdigest()[:12]}"


def read_template(path: str | None) -> str | None:
    """Return the text of a chat template file; None for None. Raises: UserError if it cannot be read."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"chat_template: cannot read {path} ({error}); name a Jinja file") from None


# Splits.


def _splits(config, kind: str, dropped: Counter) -> dict[str, Iterable[Example]]:
    """Return lazy iterators over the training and the held-out examples, each with a progress bar."""
    data, seed = config.data, config.seed
    if not data.input:
        raise UserError("data.input is not set; name files, a TFDS dataset, or a task such as builtin:arithmetic")
    if not 0 <= data.valid_fraction < 1:
        raise UserError(f"data.valid_fraction={data.valid_fraction} is not in [0, 1); a common choice is 0.01")
    builtin, most = is_builtin(data.input), {"train": data.max_examples, "valid": data.max_valid_examples}
    totals, fraction = dict(most), data.valid_fraction
    if builtin:
        most["train"] = totals["train"] = BUILTIN_EXAMPLES if data.max_examples is None else data.max_examples
    else:
        totals, fraction = _survey(data, kind, seed, dropped)

    def read(split: str) -> Iterator[Example]:
        dropped_here = dropped if builtin else None
        examples = read_examples(
            data.input, kind, split, valid_fraction=fraction, seed=seed, max_examples=most[split], dropped=dropped_here
        )
        yield from shown(examples, f"{split} examples", totals[split])

    return {split: read(split) for split in (SPLITS if data.valid_fraction else SPLITS[:1])}


def _survey(data, kind: str, seed: int, dropped: Counter) -> tuple[dict[str, int], float]:
    """Read all examples once. Returns the size of each split, and the fraction of openings to hold out.

    The fraction is data.valid_fraction. It is lowered if it gives more than data.max_valid_examples (the rest is trained on),
    and raised if it gives none.
    """
    found = examples_of(shown(read_records(data.input), "records"), kind, dropped)
    numbers = np.sort(np.fromiter((split_number(example, seed) for example in found), np.float64))
    if not len(numbers):
        cure = "name files that do"
        if kind == "conversation":
            cure = 'name files whose conversations have an answer: a message with "role": "assistant" and a content'
        raise UserError(f"data.input={data.input!r} holds no example of kind {kind}{_reasons(dropped)}; {cure}")
    fraction, limit = data.valid_fraction, data.max_valid_examples
    if fraction:
        if numbers[0] == numbers[-1]:
            raise UserError(
                f"data.input={data.input!r} holds {len(numbers)} example(s) of one prompt, which cannot be split into training "
                "and validation; set data.valid_fraction=0 or give more prompts"
            )
        if limit is not None and limit < np.searchsorted(numbers, fraction):
            fraction = float(numbers[limit])
        if fraction <= numbers[0]:
            fraction = float(np.nextafter(numbers[0], 1.0))
        if fraction > numbers[-1]:
            raise UserError(f"data.valid_fraction={data.valid_fraction} leaves no example for training; lower it")
    held_out = int(np.searchsorted(numbers, fraction))
    totals = {"train": len(numbers) - held_out, "valid": held_out}
    limits = {"train": data.max_examples, "valid": limit}
    return {split: min(n, n if limits[split] is None else limits[split]) for split, n in totals.items()}, fraction


def _reasons(*dropped: Counter) -> str:
    every = sum(dropped, Counter())
    return " (dropped: " + ", ".join(f"{n} for {reason}" for reason, n in every.most_common(3)) + ")" if every else ""


def _none_left(config, counts: dict[str, Any], advice: str) -> UserError:
    reasons = _reasons(Counter(counts["read"]["dropped"]), Counter(counts["train"]["dropped"]))
    return UserError(f"data.input={config.data.input!r}: no example is left to train on{reasons}; {advice}")


# Rows.


def _row(encoder: Encoder, kind: str, example: Example, length: int, whole: bool, counts: Counts, towers: Towers | None) -> Row:
    """Encode an example as a row with sequences of at most `length` tokens; `whole`: drop it instead of cutting."""
    columns: dict[str, Any] = {}
    if towers is not None:
        sequences = [encode_conversation(encoder, example, towers)]
    elif kind == "conversation":
        sequences = [encoder.conversation(example)]
    elif kind == "pair":
        sequences, columns["margin"] = [*encoder.pair(example)], example.margin
    elif kind == "labelled":
        (sequence, prompt), columns["desirable"] = encoder.labelled(example), example.desirable
        sequences = [sequence]
    else:
        ids, ends = encoder.steps(example.prompt, example.steps)
        trained, labels = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        trained[ends], labels[ends] = True, example.labels
        sequences = [Sequenced(ids, trained)]
    sequences = [sequence.learnt() for sequence in sequences]
    if not all(len(sequence.ids) for sequence in sequences):
        raise Dropped("the template writes no text of the assistant")
    longest = max(len(sequence.ids) for sequence in sequences)
    if longest > length:
        if whole:
            raise Dropped("longer than sequence_length")
        sequences = [sequence.learnt(length) for sequence in sequences]
        if not all(len(sequence.ids) for sequence in sequences):
            raise Dropped("the prompt fills sequence_length")
        if kind == "pair" and np.array_equal(sequences[0].ids, sequences[1].ids):
            raise Dropped("chosen and rejected differ only beyond sequence_length")
        counts.truncated += 1
    if kind == "labelled":
        sequences = [sequences[0].part(0, prompt), sequences[0].part(prompt)]
    if kind == "steps":
        columns["labels"] = labels[: len(sequences[0].ids)]
    if towers is not None:
        (seen,) = sequences
        return Row((seen.sequence,), {"media": seen.media})
    return Row(tuple(sequences), columns)


def _rows(
    encoder: Encoder, kind: str, examples: Iterable[Example], T: int, whole: bool, counts: Counts, towers: Towers | None = None
) -> Iterator[Row]:
    """Yield the rows of a split.

    Conversations have rows of T + 1 tokens, which give T predictions. The other kinds have rows of T tokens; the last one may
    have no target.
    """
    length = T + 1 if kind == "conversation" else T
    for example in examples:
        try:
            row = _row(encoder, kind, example, length, whole, counts, towers)
        except Dropped as reason:
            counts.dropped[str(reason)] += 1
            continue
        except UserError as refused:
            if not counts.examples:  # it refuses the first example, so probably all
                raise
            counts.dropped[str(refused)] += 1
            continue
        counts.examples += 1
        yield row


def packed(rows: Iterable[Row], width: int) -> Iterator[Row]:
    """Pack rows of one sequence into rows of at most `width` tokens, by best fit (data/text/packing.py) within buffers."""
    budget = max(BUFFER_TOKENS, 256 * width)
    waiting, held = [], 0
    for (sequence,), columns in rows:
        waiting.append((np.stack(sequence, axis=1), columns))
        held += len(sequence.ids) + sum(len(kept.file) for kept in columns.get("media", ())) // TOKEN_BYTES
        if held >= budget:
            yield from _packed(waiting, width)
            waiting, held = [], 0
    yield from _packed(waiting, width)


def _packed(items: list[tuple[np.ndarray, dict[str, Any]]], width: int) -> Iterator[Row]:
    columns = {id(item): beside for item, beside in items}
    for bin_ in best_fit([item for item, _ in items], width):
        whole = np.concatenate(bin_)
        segments = np.repeat(np.arange(1, len(bin_) + 1), [len(item) for item in bin_])
        media = [kept for item in bin_ for kept in columns[id(item)].get("media", ())]
        yield Row((Sequenced(whole[:, 0], whole[:, 1].astype(bool)),), {"segments": segments, "media": media})


# Files.


def _write(folder: Path, config, encoder: Encoder, kind: str, whole: bool, towers: Towers | None, needs: Sequence[str]) -> None:
    T, dropped = config.sequence_length, Counter()
    counts: dict[str, Any] = {"kind": kind, "sequence_length": T}
    for split, examples in _splits(config, kind, dropped).items():
        count, most = Counts(), {}
        rows = _rows(encoder, kind, examples, T, whole, count, towers)
        rows = packed(rows, T + 1) if kind == "conversation" else rows
        rows = rows if towers is None else media_rows.store(folder / split, rows, most)
        write_columns(folder / split, rows, kind, T, encoder.tokenizer.vocab_size, count)
        counts[split] = vars(count) | {"dropped": dict(count.dropped)} | most
    counts["read"] = {"dropped": dict(dropped)}
    if not counts["train"]["rows"]:
        raise _none_left(config, counts, f"raise sequence_length={T}")
    if blind := [name for name in needs if not counts["train"].get(name)]:
        raise UserError(
            f"data.input={config.data.input!r}: no example to train on has {blind[0]}, so their encoder would learn nothing; "
            "name the files in parts of the messages (docs/media.md), or train without this encoder"
        )
    (folder / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n")


# The record of the input.


def _files(data) -> Files | None:
    """Return the files of the input; None for built-in tasks and without an input."""
    return None if not data.input or is_builtin(data.input) else input_files(data.input, EXTENSIONS)


def _record(folder: Path, data, before: Files | None) -> None:
    """Write the record of an input that was just read. Raises: UserError if it changed meanwhile."""
    now = _files(data)
    if before and now != before:
        raise UserError(f"data.input={data.input!r} changed while it was read; leave its files alone and start again")
    if now is not None:
        record_input(folder, now, digest_of(now))
