"""Best-of-n: sample n answers to each prompt, score them with rewards, and fine-tune on the answers that are kept.

Training on the best answers is rejection sampling, or one round of RAFT (Dong et al. 2023, algorithm 1). Training on all right
answers is rejection sampling fine-tuning (Yuan et al. 2023). The best and the worst answer to a prompt also form a preference
pair.

Answers are sampled and written in chunks. A chunk is a pure function of (parameters, seed, chunk number) and is written
atomically, so a killed run resumes with the first missing chunk and produces the same bytes.
"""

import contextlib
import copy
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data.chat.examples import prepare_tasks
from lm.align.data import own_tokenizer
from lm.align.rl.rewards import Rewards, answer_records, parse_rewards, score_rollouts
from lm.align.rl.rollouts import Sampler, sampler_of, seed_of
from lm.align.rl.tools import open_surroundings
from lm.align.run import run as train
from lm.align.settings import check, check_best_of
from lm.align.stages import claim, kept_lines
from lm.errors import UserError
from lm.evals.stats.measures import pass_at_k
from lm.files.saving import write_json, write_lines
from lm.model.transformer import skeleton
from lm.parallel import hosts
from lm.parallel.mesh import check_fit, make_mesh, row_ways
from lm.runs.workdir import KEPT, check_record, recorded
from lm.train.start import adopt, initial_params
from lm.train.step import model_config_of


class Job(NamedTuple):
    """The tasks to answer, the sampler of their answers, and the rewards that score these."""

    config: Any
    sampler: Sampler
    tasks: Sequence[dict]
    rewards: Rewards


def run(config, workdir: Path, report: Callable[[Path, dict], None]) -> dict:
    """Sample answers of config.init_from to the tasks of config.data.input, and fine-tune it on the answers that are kept.

    Validation uses held-out tasks, as in reinforcement learning. report: as in lm.align.run.run.
    Returns: as lm.align.run.run, plus "best_of": statistics.
    Raises: UserError; also as lm.align.run.run.
    """
    check(config)
    acting, learning = copy.deepcopy(config), recorded(config, workdir)
    adopt(acting, workdir)
    check_record(acting, workdir)
    mesh, model_config = make_mesh(config.mesh), model_config_of(acting)
    check_fit(mesh, model_config, config.batch_size or row_ways(mesh) * config.accumulate, config.accumulate)
    tokenizer = own_tokenizer(acting, workdir)
    surroundings = open_surroundings(config.rollout)
    tasks = prepare_tasks(acting, tokenizer, surroundings.schemas)
    sampler = sampler_of(acting, skeleton(model_config)[0], tokenizer, tasks[0], surroundings)
    job = Job(acting, sampler, tasks[0], parse_rewards(config.rewards))
    with jax.set_mesh(mesh), contextlib.closing(sampler):
        summary = answered(job, lambda: initial_params(acting, mesh), workdir, surroundings.schemas)
    return train(learning, workdir, report, tasks) | {"best_of": summary}


def answered(
    job: Job, start: Callable[[], Any], workdir: Path, tools: list[dict] | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Sample config.best_of.n answers to every task of the job and keep those that config.best_of selects.

    An answer that reaches best_of.threshold counts as passed. Truncated answers are counted but never kept.

    Args:
      start: returns the parameters; called only if answers are missing. tools: tool schemas for tasks without their own.
      say: called with a progress line after each chunk.
    Files in workdir/best_of: answers/*.jsonl (one line per prompt: {"prompt", "answers": [{"messages", "reward", "rewards",
    "tokens", "ended"}], …}, where tokens is a count), conversations.jsonl ({"messages", "reward", …}), pairs.jsonl ({"prompt",
    "chosen", "rejected", "margin", …}), statistics.json and settings.json.
    Returns: the content of statistics.json.
    Raises: UserError for invalid settings, if the workdir holds answers sampled with other settings, or if no answer is kept.
    """
    config = job.config.best_of
    check_best_of(config)
    folder, size = workdir / "best_of", max(1, config.rows // config.n)
    hosts.from_first(lambda: claim(folder, "answers drawn", _settings(job)))
    params, lines = functools.cache(start), []
    for number, begin in enumerate(range(0, len(job.tasks), size)):
        path = folder / "answers" / f"{number:05}.jsonl"
        is_new = not hosts.from_first(path.is_file)
        tasks = job.tasks[begin : begin + size]
        own = kept_lines(path, functools.partial(_answers, job, params, tasks, number, tools), ensure_ascii=True)
        if is_new and hosts.is_first():
            mean = np.mean([answer["reward"] for line in own for answer in line["answers"]])
            say(f"best of {config.n}: {begin + len(tasks)}/{len(job.tasks)} prompts answered, mean reward {mean:.3f}")
        lines += own
    summary = hosts.from_first(lambda: _gather(lines, workdir, config, job.rewards))
    if not summary["kept"]:
        raise UserError(
            f"best_of: of {summary['answers']} answers none is kept, {summary['cut']} were cut by rollout.max_new_tokens and "
            f"the best reward was {summary['best']}; lower best_of.threshold={config.threshold}, or start from a model that "
            "gets some right"
        )
    return summary


# Sampling.


def _answers(job: Job, params: Callable[[], Any], tasks: Sequence[dict], number: int, tools) -> list[dict]:
    """Sample the answers to one chunk of tasks and return its lines."""
    n = job.config.best_of.n
    each = [task for task in tasks for _ in range(n)]
    rollouts = job.sampler(params(), each, seed=seed_of(job.config.seed, number))
    answers = answer_records(each, rollouts, *score_rollouts(job.rewards, each, rollouts))
    lines = []
    for i, task in enumerate(tasks):
        declared = task.get("tools") or tools
        line = {"prompt": list(task["prompt"]), "answers": answers[i * n : (i + 1) * n]}
        lines.append(line | ({"tools": declared} if declared else {}))
    return lines


def _settings(job: Job) -> dict[str, Any]:
    """Return all settings that the answers depend on."""
    config = job.config
    tasks = json.dumps(list(job.tasks), default=str)
    return {
        "best_of.n": config.best_of.n,
        "best_of.rows": config.best_of.rows,
        **{key: config[key] for key in ("seed", "dtype", "init_from", "rewards")},
        **{f"rollout.{key}": value for key, value in json.loads(json.dumps(config.rollout.to_dict())).items()},
        "tasks": f"{len(job.tasks)}, digest {hashlib.sha256(tasks.encode()).hexdigest()[:16]}",
    }


# Selection.


def _gather(lines: Sequence[dict], workdir: Path, config, rewards: Rewards) -> dict[str, Any]:
    """Write the conversations and pairs selected from the lines of all chunks. Returns the content of statistics.json."""
    conversations, pairs = [], []
    for line in lines:
        more = {"tools": line["tools"]} if "tools" in line else {}
        for answer in kept(line["answers"], config.keep, config.threshold):
            conversations.append({"messages": line["prompt"] + answer["messages"], "reward": answer["reward"], **more})
        if (extremes := best_and_worst(line["answers"])) is not None:
            high, low = extremes
            pairs.append(
                {
                    "prompt": line["prompt"],
                    "chosen": high["messages"],
                    "rejected": low["messages"],
                    "margin": high["reward"] - low["reward"],
                    **more,
                }
            )
    write_lines(workdir / KEPT, conversations, ensure_ascii=True)
    write_lines(workdir / "best_of" / "pairs.jsonl", pairs, ensure_ascii=True)
    found = statistics([line["answers"] for line in lines], rewards.names, config.threshold)
    found |= {"kept": len(conversations), "pairs": len(pairs)}
    write_json(workdir / "best_of" / "statistics.json", found)
    return found


def kept(answers: Sequence[dict], keep: str, threshold: float) -> list[dict]:
    """Return the answers to one prompt to train on: the best (the first of equals), or all different ones.

    Answers below the threshold are excluded. So are truncated ones: the model would learn to stop where they were cut.
    """
    whole = [answer for answer in answers if answer["ended"] and answer["reward"] >= threshold]
    if keep == "best":
        return [max(whole, key=lambda answer: answer["reward"])] if whole else []
    return list({json.dumps(answer["messages"]): answer for answer in reversed(whole)}.values())[::-1]


def best_and_worst(answers: Sequence[dict]) -> tuple[dict, dict] | None:
    """Return the best and the worst complete answer, or None if all rewards are equal."""
    whole = [answer for answer in answers if answer["ended"]]
    if not whole:
        return None
    high, low = (choose(whole, key=lambda answer: answer["reward"]) for choose in (max, min))
    return (high, low) if high["reward"] > low["reward"] else None


# Statistics.


def statistics(groups: Sequence[Sequence[dict]], names: Sequence[str], threshold: float) -> dict[str, Any]:
    """Return statistics of the n answers to each prompt.

    reward: for powers of two k below n, and for n, the expected best reward of k answers (`best_at_k`), mean over prompts.
    pass: with a threshold, the probability that at least one of k answers reaches it (`pass_at_k`), mean over prompts.
    rewards: the mean of each component of the reward where it applies. best: the highest reward. cut: number of truncated
    answers. tokens: mean length.
    """
    answers = [answer for group in groups for answer in group]
    n = len(groups[0])
    ks = [k for k in (2**i for i in range(n.bit_length())) if k < n] + [n]
    totals = [[answer["reward"] for answer in group] for group in groups]

    def mean(values):
        return float(np.mean(values)) if len(values) else None

    found = {
        "prompts": len(groups),
        "answers": len(answers),
        "cut": sum(not answer["ended"] for answer in answers),
        "tokens": mean([answer["tokens"] for answer in answers]),
        "best": max(map(max, totals)),
        "reward": {str(k): mean([best_at_k(rewards, k) for rewards in totals]) for k in ks},
        "rewards": {
            name: mean([answer["rewards"][name] for answer in answers if answer["rewards"][name] is not None]) for name in names
        },
    }
    if threshold > -math.inf:
        right = [sum(reward >= threshold for reward in rewards) for rewards in totals]
        found["pass"] = {str(k): mean([pass_at_k(n, c, k) for c in right]) for k in ks}
    return found


def best_at_k(rewards: Sequence[float], k: int) -> float:
    """Return Σ_i r_(i)·C(i−1, k−1) / C(n, k), r ascending: the mean over all subsets of k rewards of their maximum.

    It is an unbiased estimate of the expected best reward of k new answers. k = 1 gives the mean, k = n the maximum.
    """
    ranked, n = sorted(rewards), len(rewards)
    return sum(reward * math.comb(i - 1, k - 1) for i, reward in enumerate(ranked, start=1)) / math.comb(n, k)
