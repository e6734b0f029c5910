"""The data of an alignment run: examples that are learned from, and tasks that the model answers.

sft, preference, reward and offline distill learn from examples. rl and on-policy distill learn from the model's own answers to
tasks. A run on examples that names rewards also has held-out tasks.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from data.chat.example_batches import ExampleBatches
from data.chat.example_files import SPLITS, Examples
from data.chat.examples import prepare_examples, prepare_tasks, record_tasks
from data.chat.media import rows as media_rows
from data.chat.media.encoding import Towers
from data.text.tokenizer import Tokenizer
from lm.align import preference, senses, settings
from lm.align.rl.environments import Make, open_environment
from lm.align.rl.rewards import Rewards, check_tasks, parse_rewards
from lm.align.rl.rollouts import Sampler, check_room, sampler_of
from lm.align.rl.stream import RolloutStream
from lm.align.rl.tools import Tool, open_tools
from lm.convert.multimodal.processor import copy_processor, has_processor
from lm.parallel import hosts
from lm.train.feed import Feed, Stream
from lm.train.fit import check_memory
from lm.train.start import choose_steps
from lm.train.step import model_config_of

PAIRS = 1000  # the first ones of a split tell how long prompts and answers are
REASONS = 5  # of dropped examples that the summary names
USES = {"train": "train on", "valid": "validate on"}
Tasks = tuple[list[dict], list[dict], dict]  # to train on, held out, and counts, as prepare_tasks returns them


class RunData(NamedTuple):
    """The examples or tasks of a run.

    kind: of example (data/chat/conversations.py). learned: batches of examples to learn from, and examples; None for a run that
    learns from answers to tasks. counts: for the report. given: whether the tasks came from the caller, not from files.
    """

    kind: str
    counts: dict[str, Any]
    learned: ExampleBatches | None
    examples: Examples | None
    tasks: list[dict]
    held_out: list[dict]
    rewards: Rewards | None
    tools: list[Tool]
    environment: Make | None
    towers: Towers | None
    given: bool

    def choose_steps(self, config) -> None:
        """Set config.steps from config.epochs if that is given."""
        if self.learned is None:
            choose_steps(config, len(self.tasks), config.batch_size // (config.rl.group_size if config.method == "rl" else 1))
        else:
            choose_steps(config, self.learned.num_rows)

    def record(self, config, workdir: Path) -> None:
        """Write to the workdir what a resumed run compares, and what the model needs beside its weights."""
        if (self.tasks or self.held_out) and not self.given:
            record_tasks(config, workdir)
        if self.towers and not has_processor(workdir):
            copy_processor(Path(config.init_from), workdir)

    def sampler(self, config, graph, tokenizer: Tokenizer, template: str | None) -> Sampler | None:
        """Return what answers the tasks; None without tasks."""
        tasks, senses = self.tasks or self.held_out, {"environment": self.environment, "towers": self.towers}
        return sampler_of(config, graph, tokenizer, tasks, self.tools, template, **senses) if tasks else None

    def stream(self, config, mesh: Mesh, sampler: Sampler | None, frozen: Any) -> Stream:
        """Return the batches of the run. frozen: parameters of the reference or teacher."""
        if self.learned is not None:
            return Feed(self.learned, mesh)
        return RolloutStream(config, mesh, sampler, self.tasks, self.rewards if config.method == "rl" else None, frozen)

    def validation_feed(self, config, mesh: Mesh) -> Feed | None:
        if self.examples is None or not self.examples.valid:
            return None
        return Feed(batches(config, self.kind, self.examples, "valid", self.towers), mesh)


def prepare(
    config, workdir: Path, tokenizer: Tokenizer, mesh: Mesh, new_senses: list[str], given: Tasks | None = None
) -> RunData:
    """Read and check the data of a run.

    new_senses: media whose encoder the run gives to the model (lm/align/senses.py). given: tasks to use in place of those of
    config.data.input.
    """
    kind, first = settings.example_kind(config), hosts.is_first()
    acts = kind == "task"  # learns from its own answers
    towers = senses.towers_of(config, tokenizer, workdir) if config.method == "sft" else None
    rewards = parse_rewards(config.rewards) if config.rewards else None
    tools, environment = open_tools(config.rollout.tools), open_environment(config.rollout.environment)
    examples, tasks, held_out, counts = None, [], [], {}
    if not acts:
        needs = new_senses if towers else []
        examples = prepare_examples(config, workdir, tokenizer, kind, first=first, towers=towers, needs=needs)
        counts = examples.counts
        if towers and any((media := {name: counts["train"][name] for name in media_rows.NAMES}).values()):
            check_memory(config, mesh, media=media)  # only the data tell how many a row has
    if acts or (rewards and config.method != "reward"):
        declared = [tool.schema for tool in tools] or getattr(environment, "tools", None)
        splits = SPLITS if towers is None else SPLITS[1:]
        tasks, held_out, of_tasks = given or prepare_tasks(config, tokenizer, declared, workdir, towers=towers, splits=splits)
        counts = counts | {"tasks": of_tasks}
        if tasks or held_out:
            check_room(config, [*tasks, *held_out])
        if rewards and not acts:
            check_tasks(rewards, held_out)
    if towers is None:
        texts = [columns["tokens"] for columns in (examples.train, examples.valid) if columns] if examples else []
        texts += [task["prompt_ids"] for task in (*tasks, *held_out)]
        senses.check_text(model_config_of(config), texts)
    learned = None if acts else batches(config, kind, examples, "train", towers)
    return RunData(
        kind, counts, learned, examples, tasks, held_out, rewards, tools, environment, towers, given=given is not None
    )


def batches(config, kind: str, examples: Examples, split: str, towers: Towers | None = None) -> ExampleBatches:
    """Return the batches of a split, those of train shuffled, with the media for `towers`.

    Where no rows are packed, whole batches of short examples have shorter rows. On a mesh with a context axis all rows have the
    full length, and each answer of a pair has a row of its own.
    """
    columns, media = getattr(examples, split), None
    if towers is not None:
        media = functools.partial(media_rows.arrays, columns, towers=towers, most=examples.counts[split])

    def made(lengths: Sequence[int], **options) -> ExampleBatches:
        return ExampleBatches(
            columns,
            kind=kind,
            lengths=lengths,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=split == "train",
            media=media,
            **options,
        )

    T = config.sequence_length
    if kind == "conversation":
        return made([T])
    cut = config.mesh.get("context", 1) != 1  # by a context axis
    two_rows = made([T] if cut else row_lengths(T))
    if config.method == "preference" and kind == "pair" and config.preference.share_prompts and not cut:
        some = (two_rows.pair(id) for id in range(min(two_rows.num_rows, PAIRS)))
        if preference.pays(model_config_of(config), some):
            return made(row_lengths(2 * T), joined=True)
    return two_rows


def row_lengths(longest: int) -> list[int]:
    """Return the lengths that the rows of a batch may have: the longest one, and its quarters that are multiples of 64."""
    return [*(longest * n // 4 for n in (1, 2, 3) if longest * n % 256 == 0), longest]


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
