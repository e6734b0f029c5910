"""Best-of-n: the model answers each prompt n times, a reward judges, and what is kept is training data.

Learning from one's own best answers is rejection sampling, or RAFT (Dong et al. 2023, algorithm 1, one round of it); with
every right answer kept it is rejection sampling fine-tuning (Yuan et al. 2023). The best and the worst answer to a prompt also
make a preference pair.

Answers are drawn and written a chunk at a time. A chunk is a pure function of (parameters, seed, its number) and stands whole
or not at all, so a run that was killed goes on with the first chunk that it lacks and ends with the same bytes.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data.chat.examples import prepare_tasks
from lm.align.rl.rewards import Rewards, parse_rewards
from lm.align.rl.rolling import Rolling, judged
from lm.align.rl.rollouts import Rollout
from lm.align.rl.tools import open_tools
from lm.align.run import chat_template, own_tokenizer
from lm.align.run import run as train
from lm.align.settings import check, check_best_of
from lm.errors import UserError
from lm.evals.stats.measures import pass_at_k
from lm.model.transformer import skeleton
from lm.parallel import hosts
from lm.parallel.mesh import check_fit, make_mesh
from lm.saving import write_json, write_lines
from lm.train.start import adopt, initial_params
from lm.train.step import model_config_of
from lm.workdir import KEPT, check_record, read_object, recorded


class Best(NamedTuple):
    """What a run leaves in its workdir, under best_of/: conversations for supervised fine-tuning, preference pairs, and what
    `statistics` says of all answers, which is also in statistics.json."""

    conversations: Path
    pairs: Path
    statistics: dict[str, Any]


def run(config, workdir: Path, report: Callable[[Path, dict], None]) -> dict:
    """Lets config.init_from answer the tasks of config.data.input, and trains it on what is kept, by supervised fine-tuning.

    Validation is on the tasks held out, as in reinforcement learning. report: as lm.align.run.run takes it.
    Returns: as lm.align.run.run, and "best_of": statistics.
    Raises: UserError; and as lm.align.run.run.
    """
    check(config)
    acting, learning = copy.deepcopy(config), recorded(config, workdir)
    adopt(acting, workdir)
    check_record(acting, workdir)
    mesh, model_config = make_mesh(config.mesh), model_config_of(acting)
    check_fit(mesh, model_config, config.batch_size, config.accumulate)
    tokenizer = own_tokenizer(acting, workdir)
    tools = open_tools(config.rollout.tools)
    declared = [tool.schema for tool in tools] or None
    tasks = prepare_tasks(acting, tokenizer, declared)
    with jax.set_mesh(mesh):
        rolling = Rolling(
            acting,
            mesh,
            skeleton(model_config)[0],
            tokenizer,
            tasks[0],
            parse_rewards(config.rewards),
            group_size=1,
            tools=tools,
            template=chat_template(acting, tokenizer),
        )
        best = answered(rolling, lambda: initial_params(acting, mesh), workdir, declared)
    return train(learning, workdir, report, tasks) | {"best_of": best.statistics}


def answered(
    rolling: Rolling,
    start: Callable[[], Any],
    workdir: Path,
    tools: list[dict] | None = None,
    say: Callable[[str], None] = print,
) -> Best:
    """Answers every task of `rolling` config.best_of.n times and keeps what config.best_of says.

    Config: best_of.n answers to a prompt; best_of.rows, about how many are drawn at a time; best_of.keep, "best" (the best one
    to each prompt) or "all" (all different ones); best_of.threshold, the least reward of what is kept, or -inf. With a
    threshold, an answer that reaches it also counts as passed. Answers cut by their length are counted, never kept.

    Args:
      start: gives the parameters that answer; called if anything is left to answer. tools: as the prompts declare them, where a
        task has none of its own. say: is told of each chunk.
    Written below workdir/best_of: answers/*.jsonl (a line a prompt: {"prompt", "answers": [{"messages", "reward", "rewards",
    "tokens", "ended"}], …}, tokens counted), conversations.jsonl ({"messages", "reward", …}), pairs.jsonl ({"prompt", "chosen",
    "rejected", "margin", …}), statistics.json and settings.json.
    Raises: UserError for settings that cannot work, if the workdir holds answers drawn in another way, and if nothing is kept.
    """
    config = rolling.config.best_of
    check_best_of(config)
    folder = workdir / "best_of"
    chunks = _chunks(len(rolling.tasks), max(1, config.rows // config.n))
    hosts.from_first(lambda: _claim(folder, _settings(rolling)))
    names = [folder / "answers" / f"{number:05}.jsonl" for number in range(len(chunks))]
    there = hosts.from_first(lambda: [name.is_file() for name in names])  # all draw together
    params = None if all(there) else start()
    for number, (chunk, name) in enumerate(zip(chunks, names)):
        if there[number]:
            continue
        lines = _answers(rolling, params, chunk, number, tools)
        if hosts.is_first():
            write_lines(name, lines, ensure_ascii=True)
            mean = np.mean([answer["reward"] for line in lines for answer in line["answers"]])
            say(f"best of {config.n}: {chunk[-1] + 1}/{len(rolling.tasks)} prompts answered, mean reward {mean:.3f}")
    best = Best(workdir / KEPT, folder / "pairs.jsonl", {})
    best = best._replace(statistics=hosts.from_first(lambda: _gather(names, best, config, rolling.rewards)))
    if not best.statistics["kept"]:
        raise UserError(
            f"best_of: of {best.statistics['answers']} answers none is kept, {best.statistics['cut']} were cut by "
            f"rollout.max_new_tokens and the best reward was {best.statistics['best']}; lower best_of.threshold"
            f"={config.threshold}, or start from a model that gets some right"
        )
    return best


# Drawing.


def _chunks(tasks: int, size: int) -> list[list[int]]:
    return [list(range(begin, min(tasks, begin + size))) for begin in range(0, tasks, size)]


def _answers(rolling: Rolling, params, chunk: Sequence[int], number: int, tools) -> list[dict]:
    """The lines of one chunk."""
    config = rolling.config.best_of
    tasks = [rolling.tasks[i] for i in chunk for _ in range(config.n)]
    rows = max(1, config.rows // config.n) * config.n
    filled = tasks + [tasks[0]] * (rows - len(tasks))  # the last chunk compiles nothing anew
    seed = int(np.random.SeedSequence([rolling.config.seed, number]).generate_state(1)[0])
    rollouts = rolling.roll(params, filled, seed)[: len(tasks)]
    total, each = judged(rolling.rewards, tasks, rollouts)
    answers = [
        _answer(task, rollout, total[i], {name: values[i] for name, values in each.items()})
        for i, (task, rollout) in enumerate(zip(tasks, rollouts))
    ]
    lines = []
    for i, index in enumerate(chunk):
        task = rolling.tasks[index]
        declared = task.get("tools") or tools
        line = {"prompt": list(task["prompt"]), "answers": answers[i * config.n : (i + 1) * config.n]}
        lines.append(line | ({"tools": declared} if declared else {}))
    return lines


def _answer(task: dict, rollout: Rollout, reward: float, rewards: dict[str, float]) -> dict:
    return {
        "messages": rollout.messages[len(task["prompt"]) :],
        "reward": float(reward),
        "rewards": {name: None if math.isnan(value) else float(value) for name, value in rewards.items()},
        "tokens": rollout.length,
        "ended": rollout.ended,
    }


def _settings(rolling: Rolling) -> dict[str, Any]:
    """All that the answers depend on, but for the code."""
    config = rolling.config
    tasks = json.dumps(list(rolling.tasks), default=str)
    return {
        "best_of.n": config.best_of.n,
        "best_of.rows": config.best_of.rows,
        "seed": config.seed,
        "dtype": config.dtype,
        "init_from": config.init_from,
        "rewards": config.rewards,
        **{f"rollout.{key}": value for key, value in json.loads(json.dumps(config.rollout.to_dict())).items()},
        "tasks": f"{len(rolling.tasks)}, digest {hashlib.sha256(tasks.encode()).hexdigest()[:16]}",
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Writes down how the answers are drawn. Raises UserError if those that are there were drawn in another way."""
    path = folder / "settings.json"
    if path.is_file():
        before = read_object(path, f"delete {folder} to draw the answers anew, or use another --workdir")
        for key in {**before, **settings}:
            if before.get(key) != settings.get(key):
                raise UserError(
                    f"{folder} holds answers drawn with {key}={before.get(key)}, and this run says {settings.get(key)}: set it "
                    "back, or use another --workdir"
                )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "answers").mkdir(exist_ok=True)
        write_json(path, settings)


def _lines(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and its answers are drawn anew") from None


# Choosing.


def _gather(names: Sequence[Path], best: Best, config, rewards: Rewards) -> dict[str, Any]:
    """From the answers of all chunks to what is kept of them. Returns what is in statistics.json."""
    lines = [line for name in names for line in _lines(name)]
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
    write_lines(best.conversations, conversations, ensure_ascii=True)
    write_lines(best.pairs, pairs, ensure_ascii=True)
    found = statistics([line["answers"] for line in lines], rewards.names, config.threshold)
    found |= {"kept": len(conversations), "pairs": len(pairs)}
    write_json(best.conversations.with_name("statistics.json"), found)
    return found


def kept(answers: Sequence[dict], keep: str, threshold: float) -> list[dict]:
    """Of the answers to one prompt those to learn from: the best, the first of equals, or all that differ.

    None that was cut by its length, for it would be learnt as one that ends there, and none below the threshold.
    """
    whole = [answer for answer in answers if answer["ended"] and answer["reward"] >= threshold]
    if keep == "best":
        return [max(whole, key=lambda answer: answer["reward"])] if whole else []
    return list({json.dumps(answer["messages"]): answer for answer in reversed(whole)}.values())[::-1]


def best_and_worst(answers: Sequence[dict]) -> tuple[dict, dict] | None:
    """The two, of those that were not cut; None where all are worth the same."""
    whole = [answer for answer in answers if answer["ended"]]
    if not whole:
        return None
    high, low = (choose(whole, key=lambda answer: answer["reward"]) for choose in (max, min))
    return (high, low) if high["reward"] > low["reward"] else None


# Counting.


def statistics(groups: Sequence[Sequence[dict]], names: Sequence[str], threshold: float) -> dict[str, Any]:
    """What n answers to each prompt tell, as means over prompts.

    reward: for each k up to n, what the best of k answers is worth on average (`best_at_k`). pass, with a threshold: the share
    of prompts of which at least one of k answers reaches it (`pass_at_k`). rewards: the mean of each that the reward is made
    of, where it applies. best: the highest reward. cut: answers cut by their length. tokens: mean length.
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
    """The mean over all sets of k of the n rewards of the largest in the set: Σ_i r_(i)·C(i−1, k−1) / C(n, k), r ascending.

    Of k answers drawn anew the best is worth as much in expectation; for k = 1 it is the mean, for k = n the largest.
    """
    ranked, n = sorted(rewards), len(rewards)
    return sum(reward * math.comb(i - 1, k - 1) for i, reward in enumerate(ranked, start=1)) / math.comb(n, k)
