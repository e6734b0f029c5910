"""The tokenizer and the data of an alignment run: examples that it learns from, or tasks that its model answers.

sft, preference, reward and offline distill learn from examples. rl and on-policy distill learn from the model's own answers to
tasks. A run on examples that names rewards also has held-out tasks.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data.chat.example_batches import ExampleBatches
from data.chat.example_files import SPLITS, Examples
from data.chat.examples import held_out_examples, prepare_examples, prepare_tasks, record_tasks
from data.chat.media import rows as media_rows
from data.chat.media.encoding import Towers
from data.text.fingerprints import check_tokenizer
from data.text.hf_tokenizer import BASE_TEMPLATE, has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm.align import length
from lm.align.cross.spans import Aligner
from lm.align.rl.ahead import meshes
from lm.align.rl.rewards import Rewards, check_tasks, parse_rewards
from lm.align.rl.rollouts import Sampler, check_room, sampler_of
from lm.align.rl.tools import Surroundings
from lm.align.settings import example_kind
from lm.config import ModelConfig
from lm.config.towers import NAMES as TOWERS
from lm.convert.multimodal.processor import copy_processor, has_processor
from lm.errors import UserError
from lm.files.saving import write_json
from lm.parallel import hosts
from lm.runs.workdir import kept_json, steps_saved
from lm.train.fit import check_memory
from lm.train.start import choose_steps
from lm.train.step import model_config_of

REASONS = 5  # of dropped examples that the summary names
USES = {"train": "train on", "valid": "validate on"}
Tasks = tuple[list[dict], list[dict], dict]  # to train on, held out, and counts, as prepare_tasks returns them


class Setup(NamedTuple):
    """What the data of a run depend on.

    new_senses: media whose encoder the run gives to the model. tasks: those to use in place of the tasks of config.data.input;
    None: read these.
    """

    config: Any
    workdir: Path
    tokenizer: Tokenizer
    mesh: Mesh
    surroundings: Surroundings
    new_senses: Sequence[str] = ()
    tasks: Tasks | None = None


class RunData(NamedTuple):
    """The examples or tasks of a run.

    counts: for the report. train, valid: batches of examples to learn from, and of held-out ones; without train, the run learns
    from answers to `tasks`. held_out: tasks to measure answers on. towers: what the model of the run sees and hears.
    with_spans: adds to rows of answers the tokens of a teacher with another tokenizer.
    """

    setup: Setup
    counts: dict[str, Any]
    train: ExampleBatches | None = None
    valid: ExampleBatches | None = None
    tasks: Sequence[dict] = ()
    held_out: Sequence[dict] = ()
    rewards: Rewards | None = None
    towers: Towers | None = None
    with_spans: Aligner | None = None

    def choose_steps(self) -> None:
        """Set config.steps from config.epochs if that is given, and say what cannot be meant."""
        config = self.setup.config
        rows, rows_per_step = self.train.num_rows if self.train else len(self.tasks), config.batch_size
        if self.train is None and config.method == "rl":
            rows_per_step //= config.rl.group_size
        choose_steps(config, rows, rows_per_step)
        length.choose_warmup(config)
        length.warn_of_length(config, rows, rows_per_step)

    def check_memory(self) -> None:
        """Raise UserError if a step clearly exceeds a device's memory. Only the data tell how many media a row has."""
        media = {name: self.counts["train"][name] for name in media_rows.NAMES} if self.towers else {}
        whole = self.train is not None
        check_memory(self.setup.config, self.setup.mesh, whole_rows=whole, media=media if any(media.values()) else None)

    def record(self) -> None:
        """Write to the workdir what a resumed run compares, and what the model needs beside its weights."""
        config, workdir = self.setup.config, self.setup.workdir
        if (self.tasks or self.rewards and self.held_out) and self.setup.tasks is None:
            record_tasks(config, workdir)
        if self.towers and not has_processor(workdir):
            copy_processor(Path(config.init_from), workdir)

    def sampler(self, graph: nnx.GraphDef) -> Sampler | None:
        """Return what answers the tasks; None without tasks."""
        if not (tasks := self.tasks or self.held_out):
            return None
        setup = self.setup
        training, sampling = meshes(setup.config)
        mesh = None if sampling == training else sampling
        return sampler_of(setup.config, graph, setup.tokenizer, tasks, setup.surroundings, towers=self.towers, mesh=mesh)


def own_tokenizer(config, workdir: Path) -> Tokenizer:
    """Load the tokenizer of `workdir`, or that of config.tokenizer if `workdir` has none.

    Raises UserError if it has more ids than the model.
    """
    tokenizer = load_tokenizer(workdir if hosts.from_first(lambda: has_tokenizer(workdir)) else config.tokenizer)
    check_tokenizer(workdir, tokenizer.fingerprint)
    tokenizer = templated(config, tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"tokenizer: the tokenizer of {config.tokenizer} has {tokenizer.vocab_size} ids, more than "
            f"model.vocab_size={config.model.vocab_size} of {config.init_from}"
        )
    return tokenizer


def templated(config, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, with the chat template for base models if it has none and the config names none."""
    if config.chat_template or tokenizer.chat_template is not None:
        return tokenizer
    if hosts.is_first():
        print(
            f'the tokenizer of {config.tokenizer} has no chat template: messages are written as "User:" and "Assistant:" '
            "(data/text/base_chat_template.jinja); set chat_template to a Jinja file for another one",
            flush=True,
        )
    return tokenizer.with_chat_template(BASE_TEMPLATE)


def from_tasks(setup: Setup) -> RunData:
    """Return the data of a run that learns from its own answers: the tasks of config.data.input."""
    data = _with_tasks(RunData(setup, {}, rewards=_rewards(setup.config)), SPLITS)
    check_text(model_config_of(setup.config), [task["prompt_ids"] for task in (*data.tasks, *data.held_out)])
    return data


def batches(
    config, examples: Examples, split: str, batch_size: int, *, towers: Towers | None = None, joined: bool = False
) -> ExampleBatches:
    """Return the batches of a split, those of train shuffled, with the media for `towers`.

    Where no rows are packed, whole batches of short examples have shorter rows. On a mesh with a context axis all rows have the
    full length, and each answer of a pair has a row of its own. joined: pairs are one row, with the prompt once.
    """
    columns, media, kind, T = getattr(examples, split), None, example_kind(config), config.sequence_length
    if towers is not None:
        media = functools.partial(media_rows.arrays, columns, towers=towers, most=examples.counts[split])
    lengths = [T] if kind == "conversation" or is_split(config) else row_lengths(2 * T if joined else T)
    if kind == "conversation" and split == "valid" and towers is None and not is_split(config):
        columns, longest = length.units(columns)
        lengths = [min(size for size in row_lengths(T) if size + 1 >= longest)]
    return ExampleBatches(
        columns,
        kind=kind,
        lengths=lengths,
        batch_size=batch_size,
        seed=config.seed,
        shuffle=split == "train",
        joined=joined,
        media=media,
    )


def is_split(config) -> bool:
    """Return whether the mesh splits sequences over a context axis."""
    return config.mesh.get("context", 1) != 1


def row_lengths(longest: int) -> list[int]:
    """Return the lengths that the rows of a batch may have: the longest one, and its quarters that are multiples of 64."""
    return [*(longest * n // 4 for n in (1, 2, 3) if longest * n % 256 == 0), longest]


def from_examples(setup: Setup, batches_of: Callable[..., ExampleBatches] = batches, towers: Towers | None = None) -> RunData:
    """Return the data of a run that learns from the examples of config.data.input; with rewards also its held-out tasks."""
    config, workdir, tokenizer, *_ = setup
    rewards = _rewards(config)  # first, because it may be wrong
    options = {"first": hosts.is_first(), "towers": towers, "needs": setup.new_senses if towers else ()}
    examples = prepare_examples(config, workdir, tokenizer, example_kind(config), **options)
    length.choose_batch(config, len(examples.train["ends"]), setup.mesh)
    split_of = functools.partial(batches_of, config, examples, towers=towers)
    valid = None
    if examples.valid:
        valid = split_of("valid", length.held_out_batch(config, len(length.units(examples.valid)[0]["ends"]), setup.mesh))
    data = RunData(setup, examples.counts, split_of("train", config.batch_size), valid, rewards=rewards, towers=towers)
    if rewards and config.method != "reward":
        data = _with_tasks(data, SPLITS if towers is None else SPLITS[1:])
        check_tasks(rewards, data.held_out)
    elif writes_samples(config, towers):
        data = data._replace(held_out=_sample_prompts(setup))
    if towers is None:
        texts = [columns["tokens"] for columns in (examples.train, examples.valid) if columns]
        texts += [task["prompt_ids"] for task in (*data.tasks, *data.held_out)]
        check_text(model_config_of(config), texts)
    return data


def _rewards(config) -> Rewards | None:
    return parse_rewards(config.rewards) if config.rewards else None


def writes_samples(config, towers: Towers | None) -> bool:
    """Return whether a run without rewards answers held-out prompts for its report."""
    can_answer = config.method != "reward" and towers is None and not is_split(config) and config.mesh.get("stage", 1) == 1
    return bool(can_answer and config.num_samples and config.data.valid_fraction)


def _sample_prompts(setup: Setup) -> list[dict]:
    """Return held-out prompts for the samples of the run, those whose answers have room.

    They are kept in the workdir, since the input of a resumed run may be gone. A run of an older version has none.
    """
    config, path = setup.config, setup.workdir / "held_out_prompts.json"

    def prompts() -> list[dict]:
        if steps_saved(setup.workdir):
            return kept_json(path) or []
        try:
            _, tasks, _ = prepare_tasks(config, setup.tokenizer, setup.surroundings.schemas, splits=SPLITS[1:])
        except UserError as none:  # such as answers without a question, which can be learnt from
            print(f"no samples of held-out prompts: {none}", flush=True)
            return []
        if (kind := example_kind(config)) == "labelled":  # a pair is two of them, so other records are held out
            own = [example.prompt for example in held_out_examples(config, kind)]
            tasks = [task for task in tasks if task["prompt"] in own]
        room = config.sequence_length + 1 - config.rollout.max_new_tokens
        fit = [task for task in tasks if len(task["prompt_ids"]) <= room][: config.num_samples]
        setup.workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, fit)
        return fit

    return hosts.from_first(prompts)


def _with_tasks(data: RunData, splits: Sequence[str]) -> RunData:
    """Add the tasks of the run. splits: those to read."""
    setup = data.setup
    options = {"towers": data.towers, "splits": splits}
    tasks, held_out, counts = setup.tasks or prepare_tasks(
        setup.config, setup.tokenizer, setup.surroundings.schemas, setup.workdir, **options
    )
    if tasks or held_out:
        check_room(setup.config, [*tasks, *held_out])
    return data._replace(tasks=tasks, held_out=held_out, counts=data.counts | {"tasks": counts})


def check_text(model: ModelConfig, texts: Iterable[Sequence[int]]) -> None:
    """Raise UserError if data without media have tokens that stand for the vectors of an encoder."""
    for ids in texts:
        for name in TOWERS:
            tower = getattr(model, name)
            if tower.num_layers and (np.asarray(ids) == tower.token_id).any():
                raise UserError(
                    f"data.input: text with the token {tower.token_id}, which is the place of a vector of model.{name}, and "
                    "without media: a chat template or the tokenizer writes it. Use another one, or method=sft with the media"
                )


def data_summary(counts: dict, config) -> str:
    """Return one line that says how many examples are used, and how many are cut, left out or dropped, for which reason."""
    parts, dropped = [], Counter((counts.get("read") or {}).get("dropped", {}))
    limits = {"train": config.data.max_examples, "valid": config.data.max_valid_examples}
    for name, values in ({"": counts} | ({"tasks": counts["tasks"]} if "tasks" in counts else {})).items():
        for split in ("train", "valid"):
            if split in values:
                used = values[split]["examples"]
                what = name or f"{values['kind']} examples"
                parts.append(f"{used:,} {what} to {USES[split]}")
                if used == limits[split]:
                    key = "max_examples" if split == "train" else "max_valid_examples"
                    parts[-1] += f" (the rest is left out by data.{key})"
                if cut := values[split].get("truncated"):
                    parts.append(f"{cut:,} of them cut at sequence_length={config.sequence_length}")
                dropped.update(values[split]["dropped"])
    for reason, count in dropped.most_common(REASONS):
        parts.append(f"{count:,} dropped ({reason})")
    if others := dropped.total() - sum(count for _, count in dropped.most_common(REASONS)):
        parts.append(f"{others:,} more dropped for {len(dropped) - REASONS:,} other reasons")
    return "data: " + ", ".join(parts)
