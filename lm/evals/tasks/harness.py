"""Run tasks of lm-evaluation-harness in this process on any Subject, with the harness's own prompts, filters and metrics.

    harness:arc_easy       a task or group that comes with the harness
    harness:DIR/mine.yaml  a file in its format; data_files in it are relative to the working directory

Metrics have the harness's names; the filter is left out of the name if there is only one. A group also has "subtasks".
"""

import contextlib
import importlib.metadata
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lm.errors import UserError
from lm.evals.stats.chance import mean_guess
from lm.evals.stats.joining import Problems
from lm.evals.stats.measures import mean
from lm.evals.task import Continuation, Outcome, Prompt, Subject, TaskSettings

NEW_TOKENS = 256  # maximum tokens of an answer, unless the task says otherwise
ALONE = "DISABLE_MULTIPROC"  # stops the harness from forking, which can hang a process with JAX's threads
RESAMPLED = 1000  # bootstrap resamples, for metrics whose standard error has no formula
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names that tasks use for the limit


def build(name: str, settings: TaskSettings) -> "HarnessTask":
    """Load the task or group of `harness:NAME` or `harness:FILE.yaml` with its data.

    Raises: UserError if the harness is not installed, does not know the task, or cannot read it or its data.
    """
    called = name.removeprefix("harness:")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(f"{name}: needs lm-evaluation-harness; pip install 'lm-eval>=0.4.13,<0.5'") from None
    path = Path(called) if called.endswith((".yaml", ".yml")) else None
    with _seeded(settings.seed):
        manager, title = _of_file(path) if path else (TaskManager(), called)
        if title not in manager.all_tasks:
            raise UserError(f"{name}: the harness has no task or group {title!r}; lm-eval ls tasks lists them")
        try:
            loaded = manager.load([title])
        except Exception as error:  # data sets are loaded by code of all kinds
            raise UserError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    for attribute, why in (
        ("UNSAFE_CODE", "runs the model's code without a sandbox; use humaneval instead"),
        ("MULTIMODAL", "asks about images or sound: write a task file of ours for it, with doc_to_image or doc_to_audio"),
    ):
        if refused := [title for title, task in loaded["tasks"].items() if getattr(task, attribute, False)]:
            raise UserError(f"{name}: {refused[0]} {why}")
    groups = loaded["groups"]
    tops = [groups[title]] if title in groups else list(loaded["tasks"].values())
    versions = {"lm_eval": importlib.metadata.version("lm_eval")}
    versions |= {task_name: str(task.VERSION) for task_name, task in sorted(loaded["tasks"].items())}
    return HarnessTask(path.stem if path else title, title, tops, manager, settings, versions)


def _of_file(path: Path) -> tuple[Any, str]:
    """Return the manager of the tasks in a file's folder, and the name of the file's task or group.

    The harness's own tasks, which take some seconds to find, are only read for a group that names tasks outside its folder.
    """
    from lm_eval.tasks import TaskManager

    if not path.is_file():
        raise UserError(f"harness:{path}: no such file")
    manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    entry = next((entry for entry in manager.task_index.values() if entry.yaml_path == path), None)
    if entry is None:
        try:
            yaml.compose(path.read_text(encoding="utf-8"))  # tags of functions are not resolved
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"harness:{path}: {' '.join(str(error).split())}") from None
        raise UserError(f"harness:{path}: the harness reads neither a task nor a group of it; write YAML with a key `task`")
    inside = entry.cfg.get("task")
    if isinstance(inside, list) and not all(name in manager.all_tasks for name in inside):
        manager = TaskManager(include_path=str(path.parent))
    return manager, entry.name


class HarnessTask(NamedTuple):
    """name: in results. title: the harness's name. tops: its tasks, or its group."""

    name: str
    title: str
    tops: list
    manager: Any
    settings: TaskSettings
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome:
        from lm_eval import simple_evaluate

        settings, model = self.settings, as_lm(subject, self.settings.seed)
        with _seeded(settings.seed), undescribed():
            evaluated = simple_evaluate(
                model,
                tasks=self.tops,
                task_manager=self.manager,
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                system_instruction=settings.system or None,
                apply_chat_template=settings.chat,
                fewshot_as_multiturn=settings.chat and settings.fewshot_as_multiturn,
                log_samples=True,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
                bootstrap_iters=RESAMPLED,
            )
        samples, problems, parts = [], Problems(), {}
        for task, records in sorted(evaluated["samples"].items()):
            inside = {"task": self.name} | ({} if task == self.title else {"subtask": task})
            some = [inside | sample for sample in _samples(records, model.tokens)]
            parts[task] = _results(evaluated["results"][task], some, problems)
            samples += some
        top = evaluated["results"].get(self.title) or {}
        results = parts[self.title] if self.title in parts else _results(top, samples, Problems())
        shots = {evaluated["n-shot"].get(task) for task in parts}
        results["num_fewshot"] = shots.pop() if len(shots) == 1 else None
        if len(parts) > 1 or self.title not in parts:
            results["subtasks"] = parts
        return Outcome(results | {"problems": problems.kinds}, samples)


def as_lm(subject: Subject, seed: int = 0):
    """Wrap the subject as an lm_eval.api.model.LM. Its `tokens` maps (context, continuation) to the token ids that were used.

    seed: for sampling; equal requests of one call get different seeds.
    """
    from lm_eval.api.model import LM

    class SubjectLM(LM):
        def __init__(self):
            super().__init__()
            self.tokens: dict[tuple[str, str], tuple[Sequence[int], Sequence[int]]] = {}

        def loglikelihood(self, requests) -> list[tuple[float, bool]]:
            pairs = [request.args[:2] for request in requests]
            answers = subject.likelihoods([Continuation(*pair) for pair in pairs])
            self.tokens |= {p: (a.context_tokens, a.tokens) for p, a in zip(pairs, answers, strict=True) if a.tokens}
            return [(answer.logp, answer.greedy) for answer in answers]

        def loglikelihood_rolling(self, requests) -> list[float]:
            return [math.fsum(rolled.logps) for rolled in subject.rolled([request.args[0] for request in requests])]

        def generate_until(self, requests) -> list[str]:
            drawn: Counter = Counter()
            prompts = []
            for request in requests:
                prompt = _prompt(*request.args[:2], seed)
                prompts.append(prompt._replace(seed=seed + drawn[prompt]))
                drawn[prompt] += 1
            answers = subject.generate(prompts)
            if problem := next((answer.problem for answer in answers if answer.problem), ""):
                raise UserError(f"harness: {problem}")
            return [answer.text for answer in answers]

        def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
            messages = [dict(message) for message in chat_history]
            if not add_generation_prompt and messages and messages[-1]["role"] == "assistant":
                return subject.chat_prompt(messages[:-1], messages[-1]["content"])
            return subject.chat_prompt(messages)

        @property
        def tokenizer_name(self) -> str:
            return subject.name

    return SubjectLM()


def _prompt(context: str, options: Mapping[str, Any], seed: int) -> Prompt:
    """Convert a request to generate as the harness's own models do. Raises UserError for an unsupported option."""
    options = dict(options)
    limits = [options.pop(name, None) for name in LIMITS]
    until = options.pop("until", None) or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    temperature, sampled = float(options.pop("temperature", None) or 0.0), options.pop("do_sample", None)
    top_p = float(options.pop("top_p", None) or 1.0)
    if options:
        raise UserError(
            f"harness: generation_kwargs.{min(options)} is not supported; supported are until, {LIMITS[0]}, do_sample, "
            "temperature and top_p"
        )
    new = next((int(limit) for limit in limits if limit is not None), NEW_TOKENS)
    return Prompt(context, stops, new, 0.0 if sampled is False else temperature, top_p, seed)


def _samples(records: Sequence[Mapping], tokens: Mapping) -> list[dict[str, Any]]:
    """Return one sample per item, with the metrics of all filters."""
    samples: dict[Any, dict[str, Any]] = {}
    filters = {record["filter"] for record in records}
    for record in records:
        sample = samples.get(record["doc_id"])
        if sample is None:
            sample = samples[record["doc_id"]] = _sample(record, tokens)
        for metric in record["metrics"]:
            value = record[metric]
            if isinstance(value, bool | int | float | np.number):
                sample["metrics"][_named(metric, record["filter"], filters)] = float(value)
        if "generation" in sample:
            answers = sample.setdefault("answers", {}) if len(filters) > 1 else sample
            answers[record["filter"] if len(filters) > 1 else "answer"] = record["filtered_resps"][0]
    for sample in samples.values():
        sample["failed"] = next((value == 0 for value in sample["metrics"].values() if value in (0, 1)), False)
    return list(samples.values())


def _sample(record: Mapping, tokens: Mapping) -> dict[str, Any]:
    arguments, target = [tuple(argument) for argument in record["arguments"]], record["target"]
    first = arguments[0]
    sample = {"doc_id": record["doc_id"], "prompt": first[0], "target": target, "metrics": {}}
    if len(first) == 1:  # rolling
        return sample | {"loglikelihood": record["resps"][0][0]}
    if isinstance(first[1], Mapping):
        sample |= {"generation": record["resps"][0][0], "reference": str(target)}
        return sample | ({"generations": record["resps"][0]} if len(record["resps"][0]) > 1 else {})
    logps = [response[0][0] for response in record["resps"]]
    if "acc_mutual_info" in record["metrics"]:  # each choice is asked for twice: after its prompt, then after nothing
        n = len(arguments) // 2
        arguments, logps, sample["loglikelihoods_alone"] = arguments[:n], logps[:n], logps[n:]
    choices = [argument[1] for argument in arguments]
    if len({argument[0] for argument in arguments}) > 1:
        sample["prompts"] = [argument[0] for argument in arguments]
    sample |= {
        "choices": choices,
        "loglikelihoods": logps,
        "tokens": [[list(ids) for ids in tokens[argument]] if argument in tokens else None for argument in arguments],
    }
    right = isinstance(target, int) and 0 <= target < len(choices)
    return sample | {"reference": choices[target].strip() if right else str(target)}


def _results(reported: Mapping[str, Any], samples: Sequence[Mapping], problems: Problems) -> dict[str, Any]:
    """Return the harness's metrics. If likelihoods are not finite, which the harness would score, leave those items out."""
    bad = set()
    for sample in samples:
        logps = sample.get("loglikelihoods", [sample["loglikelihood"]] if "loglikelihood" in sample else [])
        if not all(math.isfinite(logp) for logp in logps):
            problems.add("loglikelihoods_not_finite", f"{sample.get('subtask', sample['task'])} {sample['doc_id']}: {logps}")
            bad.add(id(sample))
    filters = {key.split(",", 1)[1] for key in reported if "," in key}
    results: dict[str, Any] = {"n": len(samples) - len(bad), "chance": mean_guess(samples)}
    for key, value in reported.items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or metric.endswith("_stderr"):
            continue
        name, error = _named(metric, filter_, filters), reported.get(f"{metric}_stderr,{filter_}")
        results |= {name: value, f"{name}_stderr": error if isinstance(error, int | float) else None}
        if bad:
            values = [s["metrics"][name] for s in samples if id(s) not in bad and name in s["metrics"]]
            results |= mean(name, values)
    return results


def _named(metric: str, filter_: str, filters: set[str]) -> str:
    """Return a metric's name in results: without its filter if there is only one."""
    return metric if len(filters) == 1 else f"{metric},{filter_}"


@contextlib.contextmanager
def undescribed() -> Iterator[None]:
    """Let the harness leave out its description of this machine, which is in no result: for each task it starts pip."""
    from lm_eval import evaluator

    describe = getattr(evaluator, "add_env_info", None)
    evaluator.add_env_info = lambda results: None
    try:
        yield
    finally:
        evaluator.add_env_info = describe


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators, which the harness's tasks use, and restore them afterwards."""
    before, numpys, alone = random.getstate(), np.random.get_state(), os.environ.get(ALONE)
    random.seed(0)  # the harness's own default
    np.random.seed(seed % 2**32)
    os.environ[ALONE] = "1"
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpys)
        os.environ.pop(ALONE)
        if alone is not None:
            os.environ[ALONE] = alone
