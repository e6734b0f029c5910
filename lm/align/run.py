"""Run one alignment method: prepare its data, objective and stream, train with lm.train.loop, and write a report.

sft, preference, reward and offline distill read batches that were prepared before the run. rl and on-policy distill generate
each batch as rollouts of the current parameters.
"""

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from data.chat.example_batches import ExampleBatches
from data.chat.example_files import SPLITS, Examples
from data.chat.examples import prepare_examples, prepare_tasks, record_tasks
from data.chat.media import rows as media_rows
from data.chat.media.encoding import Towers
from data.text.fingerprints import check_tokenizer, record_tokenizer
from data.text.hf_tokenizer import BASE_TEMPLATE, has_tokenizer
from data.text.tokenizer import Tokenizer, load_tokenizer
from lm import sizing
from lm.align import distill, preference, reward, senses, settings, sft
from lm.align.losses import WITHOUT_REFERENCE
from lm.align.rl import objective as rl
from lm.align.rl.environments import open_environment
from lm.align.rl.held_out import Samples, evaluate
from lm.align.rl.rewards import Rewards, check_tasks, parse_rewards
from lm.align.rl.rollouts import Sampler, check_room, sampler_of
from lm.align.rl.stream import RolloutStream
from lm.align.rl.tools import open_tools
from lm.convert.multimodal.processor import copy_processor, has_processor
from lm.errors import UserError
from lm.evals import in_loop
from lm.model.linear import trainable
from lm.model.transformer import skeleton
from lm.parallel import hosts
from lm.parallel.context import sequences_whole
from lm.parallel.mesh import check_fit, make_mesh
from lm.train import events, loop
from lm.train.epochs import choose_steps
from lm.train.feed import Feed, Stream, summed
from lm.train.fit import check_memory
from lm.train.rates import choose_rate
from lm.train.start import adopt, initial_params
from lm.train.step import Objective, Trainer, make_trainer, model_config_of
from lm.workdir import finished, save_record

PAIRS = 1000  # the first ones of a split tell how long prompts and answers are
REASONS = 5  # of dropped examples that the summary names
USES = {"train": "train on", "valid": "validate on"}


class Method(NamedTuple):
    """The objective of a method and what it needs."""

    objective: Objective
    frozen: Any  # parameters of the reference or teacher, on the mesh, or None
    updates: int = 1  # optimizer updates in a step


def run(
    config, workdir: Path, report: Callable[[Path, dict], None], given: tuple[list[dict], list[dict], dict] | None = None
) -> dict:
    """Train config.init_from with config.method, or resume the run in `workdir`, and write a report.

    report: writes the report, such as lm.reports.align.write_run. The first process calls it at the end with workdir and
    figures.
    given: (tasks, held-out tasks, counts) as prepare_tasks returns them, to use instead of the tasks of config.data.input.
    Returns: {"before", "after", "step"}: validation metrics by name before the first step and at the end, or None.
    Raises: UserError; Stopped and Diverged as lm.train.loop.train.
    """
    begin = time.perf_counter()
    settings.check(config)
    if config.method == "distill":
        distill.check_settings(config.distill)
    new_senses = [name for name, section in senses.SECTIONS.items() if config.model[section].num_layers]
    adopt(config, workdir)
    config.model.score_head = score_head(config)
    mesh = make_mesh(config.mesh)
    model_config = model_config_of(config)
    ways = config.accumulate * (config.rl.minibatches if config.method == "rl" else 1)
    check_fit(mesh, model_config, config.batch_size, ways, config.sequence_length)
    loop.check_config(config, workdir)
    choose_rate(config)
    if done := hosts.from_first(lambda: finished(config, workdir)):
        return {"before": done.get("before"), "after": done.get("after"), "step": done["training"]["steps"]}
    check_memory(config, mesh, whole_rows=settings.example_kind(config) != "task")
    evals = in_loop.open_evals(config)
    tokenizer = own_tokenizer(config, workdir)
    template = chat_template(config, tokenizer)

    kind = settings.example_kind(config)
    towers = senses.towers_of(config, tokenizer, workdir) if config.method == "sft" else None
    needs = new_senses if towers else []
    rewards = parse_rewards(config.rewards) if config.rewards else None
    tools, environment = open_tools(config.rollout.tools), open_environment(config.rollout.environment)
    acts, generates = kind == "task", config.method != "reward"
    examples, tasks, held_out, counts = None, [], [], {}
    if not acts:
        examples = prepare_examples(config, workdir, tokenizer, kind, first=hosts.is_first(), towers=towers, needs=needs)
        counts = examples.counts
        if towers and any((media := {name: counts["train"][name] for name in media_rows.NAMES}).values()):
            check_memory(config, mesh, media=media)  # only the data tell how many a row has
    if acts or (rewards and generates):
        declared = [tool.schema for tool in tools] or getattr(environment, "tools", None)
        tasks, held_out, task_counts = given or prepare_tasks(
            config, tokenizer, declared, workdir, towers=towers, splits=SPLITS if towers is None else SPLITS[1:]
        )
        counts = counts | {"tasks": task_counts}
        if tasks or held_out:
            check_room(config, [*tasks, *held_out])
        if rewards and not acts:
            check_tasks(rewards, held_out)
    if towers is None:
        texts = [columns["tokens"] for columns in (examples.train, examples.valid) if columns] if examples else []
        senses.check_text(model_config, [*texts, *(task["prompt_ids"] for task in (*tasks, *held_out))])
    learn = None if acts else batches(config, kind, examples, "train", towers)
    if acts:
        choose_steps(config, len(tasks), config.batch_size // (config.rl.group_size if config.method == "rl" else 1))
    else:
        choose_steps(config, learn.num_rows)
    if hosts.is_first():
        print(data_summary(counts, config), flush=True)
        workdir.mkdir(parents=True, exist_ok=True)
        if not has_tokenizer(workdir):
            tokenizer.save(workdir)
        record_tokenizer(workdir, tokenizer.fingerprint)
        if (tasks or held_out) and not given:
            record_tasks(config, workdir)
        save_record(config, workdir)
        if towers and not has_processor(workdir):
            copy_processor(Path(config.init_from), workdir)
    prepared = time.perf_counter()

    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        method = method_of(config, tokenizer, mesh)
        trainer = make_trainer(config, method.objective, method.updates)
        graph, _ = skeleton(model_config)
        sampler = None
        if tasks or held_out:
            sampler = sampler_of(
                config, graph, tokenizer, tasks or held_out, tools, template, environment=environment, towers=towers
            )
        if sampler is not None:
            stack.callback(sampler.close)
        if acts:
            scores = rewards if config.method == "rl" else None
            stream: Stream = RolloutStream(config, mesh, sampler, tasks, scores, method.frozen)
        else:
            stream = Feed(learn, mesh)
        valid = batches(config, kind, examples, "valid", towers) if examples and examples.valid else None
        feed = Feed(valid, mesh) if valid else None
        validate = Validation(config, trainer, feed, sampler, held_out, rewards, method.frozen)
        samples = Samples(config, workdir, sampler, held_out, rewards) if held_out else None
        if config.method == "rl" and method.updates > 1:
            trainer = trainer._replace(step=rl.iteration(trainer, config.rl.epochs, config.rl.minibatches))
        result = loop.train(
            config,
            trainer,
            mesh,
            stream,
            workdir,
            lambda: initial_params(config, mesh),
            events.usual(
                validate=validate if validate.measures else None,
                measure=in_loop.measuring(evals, workdir, graph, tokenizer),
                samples=samples,
            ),
            method.frozen,
        )
    before = first_validation(workdir)
    found = {"before": before, "after": result["valid"], "step": result["step"]}
    if hosts.is_first():
        stages = {"data": prepared - begin, "training": result["seconds"]}
        stages["start and other"] = time.perf_counter() - begin - sum(stages.values())
        report(
            workdir,
            {
                "method": title(config),
                "config": config.to_dict(),
                "parameters": sum(sizing.parameters(model_config)["total"].values()),
                "data": counts,
                "stages": stages,
                "before": before,
                "after": result["valid"],
                "finished": result["step"] >= config.steps,
                "training": {name: result[name] for name in ("tokens", "skipped", "rewinds")} | {"steps": result["step"]},
            },
        )
    return found


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


def title(config) -> str:
    """Return the usual name of the method, such as dpo or grpo."""
    if config.method == "preference":
        return config.preference.loss
    if config.method == "rl":
        return config.rl.algorithm
    return config.method


def score_head(config) -> str:
    """Return the score head that the method needs: "reward", "value" or "none"."""
    if config.method == "reward":
        return "reward"
    return "value" if config.method == "rl" and config.rl.algorithm == "ppo" else "none"


def method_of(config, tokenizer: Tokenizer, mesh) -> Method:
    """Return the method's objective, and its reference or teacher on the current mesh."""
    if config.method == "sft":
        return Method(sft.objective(config), None)
    if config.method == "preference":
        has_reference = config.preference.loss not in WITHOUT_REFERENCE
        return Method(preference.objective(config), starting_point(config, mesh) if has_reference else None)
    if config.method == "reward":
        return Method(reward.objective(config), None)
    if config.method == "distill":
        graph, params = distill.open_teacher(config, tokenizer, mesh)
        return Method(distill.objective(config, graph), params)
    frozen = starting_point(config, mesh) if rl.needs_reference(config) else None
    return Method(rl.objective(config), frozen, config.rl.epochs * config.rl.minibatches)


def starting_point(config, mesh) -> nnx.State:
    """Return the trainable parameters before the first step (for lm.align.logprobs.reference_model)."""
    return nnx.filter_state(initial_params(config, mesh), trainable(model_config_of(config)))


def batches(config, kind: str, examples: Examples, split: str, towers: Towers | None = None) -> ExampleBatches:
    """Return the batches of a split, those of train shuffled, with the media for `towers`.

    Where no rows are packed, whole batches of short examples have shorter rows. On a mesh with a context axis all rows have the
    full length, and each answer of a pair has a row of its own.
    """
    columns, media = getattr(examples, split), None
    if towers is not None:
        media = functools.partial(media_rows.arrays, columns, towers=towers, most=examples.counts[split])

    def made(**options) -> ExampleBatches:
        return ExampleBatches(
            columns,
            kind=kind,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=split == "train",
            media=media,
            **options,
        )

    if kind == "conversation":
        return made()
    cut = config.mesh.get("context", 1) != 1  # by a context axis
    two_rows = made(lengths=() if cut else row_lengths(config.sequence_length))
    if config.method == "preference" and kind == "pair" and config.preference.share_prompts and not cut:
        some = (two_rows.pair(id) for id in range(min(two_rows.num_rows, PAIRS)))
        if preference.pays(model_config_of(config), some):
            return made(lengths=row_lengths(2 * config.sequence_length), joined=True)
    return two_rows


def row_lengths(longest: int) -> list[int]:
    """Return what else the rows of a batch may have as their length: quarters of the longest one, if multiples of 64."""
    return [longest * n // 4 for n in (1, 2, 3) if longest * n % 256 == 0]


class Validation:
    """Compute the validation metrics: rewards of greedy answers to held-out tasks, and the objective on held-out examples."""

    def __init__(
        self,
        config,
        trainer: Trainer,
        feed: Feed | None,
        sampler: Sampler | None,
        tasks: Sequence[dict],
        rewards: Rewards | None,
        frozen,
    ):
        self.config, self.feed, self.step = config, feed, jax.jit(trainer.evaluate)
        self.sampler, self.tasks, self.rewards, self.frozen = sampler, tasks, rewards, frozen
        self.samples = bool(tasks and rewards)
        self.measures = feed is not None or self.samples

    def __call__(self, params, at_most: int | None = None) -> dict[str, float]:
        metrics = {}  # the most important metric comes first
        if self.samples:
            rows = self.config.batch_size
            tasks = self.tasks if at_most is None else self.tasks[: at_most * rows]
            with sequences_whole(params) as whole:
                metrics |= evaluate(self.sampler, whole, tasks, self.rewards, rows)
        if self.feed is not None:
            sums = summed(lambda batch: self.step(params, batch, self.frozen), self.feed.spread(at_most))
            metrics["loss"] = sums["objective"] / max(1e-9, sums["weight"])
            metrics |= {name: x / w for name, (x, w) in sums["metrics"].items() if w}
        return metrics


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


def chat_template(config, tokenizer: Tokenizer) -> str | None:
    """Return the text of config.chat_template, or None for the tokenizer's own."""
    if config.chat_template:
        path = Path(config.chat_template)
        if not path.is_file():
            raise UserError(f"chat_template={config.chat_template}: no such file")
        return path.read_text(encoding="utf-8")
    return None


def first_validation(workdir: Path) -> dict[str, float] | None:
    """Return the validation metrics of step 0 by name, or None if there was no such validation."""
    path = workdir / "metrics.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        values = json.loads(line)
        if values["step"] == 0:
            return {name.removeprefix("valid_"): value for name, value in values.items() if name != "step"}
    return None
