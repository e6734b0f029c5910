"""Tasks in an environment: the model acts over several turns, with tools, and the environment judges its episodes.

An environment is one of lm/infer/environments.py, as in rollouts of align.py. The items are records for it: prompt, tools and
what else it reads. An item has several episodes, whose column `seed` is 0, 1, …, so that a simulated user may word its turns
otherwise; the seed of a record that has one stays. An episode succeeds if its rewards sum up to `success`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.chat.messages import messages_of
from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.stats.joining import Malformed, Problems
from lm.evals.stats.measures import pass_hat_k
from lm.evals.task import Generated, Outcome, Prompt, Subject, TaskSettings
from lm.evals.tasks import documents
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.file_task import plural, readable
from lm.evals.tasks.items import digest
from lm.evals.tasks.settings import check_least, resolved
from lm.infer.calls import Answer
from lm.infer.environments import Checks, Episodes, Make, open_environment

KEYS = documents.KEYS | {
    "environment": "",  # needed: a name of lm/infer/environments.py, or FILE.py:CLASS, also of a file beside the task's
    "repeats": 4,  # episodes of an item
    "pass_hat": list,  # the values k of pass^k
    "success": 1.0,  # the least reward of an episode that succeeds
    "max_turns": 24,  # of the model; an episode that is not over by then fails
    "max_new_tokens": 256,  # of a turn
    "temperature": 0.0,
    "top_p": 1.0,
}
KEY = "environment"


@dataclasses.dataclass
class Episode:
    """An episode that goes on. messages: so far. checks: those of the environment. answers: of the model."""

    messages: list[dict[str, Any]]
    checks: Checks
    answers: list[Generated] = dataclasses.field(default_factory=list)
    broken: bool = False  # the last turn has calls that could not be parsed
    reward: float = 0.0
    over: bool = False


class Acting(NamedTuple):
    """A task of lm/evals/task.py. values: its settings. make: makes the environment of an episode."""

    name: str
    versions: dict[str, Any]
    documents: Documents
    values: dict[str, Any]
    seed: int
    make: Make

    def run(self, subject: Subject) -> Outcome:
        problems, repeats = self.documents.new_problems(), self.values["repeats"]
        items = readable(self.documents.items, _prompt, problems)
        tasks = [{"seed": trial} | item.doc | {"prompt": prompt} for item, prompt in items for trial in range(repeats)]
        episodes = self.play(subject, tasks)
        groups = [episodes[n : n + repeats] for n in range(0, len(episodes), repeats)]
        samples = [self.sample(item, own, problems) for (item, _), own in zip(items, groups, strict=True)]
        scored = [sample for sample in samples if sample["metrics"]]
        names = list(dict.fromkeys(name for sample in scored for name in sample["metrics"]))
        results = {"main": "pass^1"} | outcomes.means(scored, names) | {"repeats": repeats, "problems": problems.kinds}
        if by := self.values.get("group_by"):
            results[plural(by)] = outcomes.parts(scored, "group", lambda some: outcomes.means(some, names))
        return Outcome(results, samples)

    def play(self, subject: Subject, tasks: Sequence[Mapping[str, Any]]) -> list[Episode]:
        """Return one episode a task, those of an item side by side. All that go on take their next turn together."""
        worlds = Episodes(self.make, tasks, KEY)
        played = [Episode(list(task["prompt"]), checks) for task, checks in zip(tasks, worlds.begun, strict=True)]
        going, shared, values = list(range(len(tasks))), getattr(self.make, "tools", None), self.values
        sampling = [(), values["max_new_tokens"], float(values["temperature"]), float(values["top_p"])]
        for _ in range(values["max_turns"]):
            texts = {i: _text(subject, played[i], tasks[i].get("tools") or shared) for i in going}
            prompts = {
                i: Prompt(text, *sampling, seed=self.seed + i % values["repeats"])
                for i, text in texts.items()
                if text is not None
            }
            acted = {}
            for i, answer in zip(prompts, subject.generate([*prompts.values()]), strict=True):
                action = _action(subject, played[i], answer)
                if answer.ended and not answer.problem:
                    acted[i] = action
            going = []
            for i, observed in worlds.step(acted).items():
                episode = played[i]
                episode.reward, episode.over, episode.checks = observed.total, observed.over, observed.checks
                if not observed.over:
                    episode.messages += _replies(acted[i], observed.answers)
                    going.append(i)
            if not going:
                break
        return played

    def sample(self, item: TaskItem, episodes: Sequence[Episode], problems: Problems) -> dict[str, Any]:
        """Return the sample of an item. Its flags name what was cut, and the checks that an episode failed, as not_CHECK."""
        passed = [episode.over and episode.reward >= self.values["success"] for episode in episodes]
        shown = episodes[passed.index(False) if False in passed else 0]
        by = self.values.get("group_by")
        first = len(item.doc["prompt"]) if isinstance(item.doc["prompt"], list) else 1
        sample = {
            "task": self.name,
            "doc_id": item.id,
            "split": self.versions["split"],
            **({"group": item.group, by: item.group} if by else {}),
            "prompt": _transcript(shown.messages[:first]),
            "target": None,
            "generation": _transcript(shown.messages[first:]),
            "metrics": {},
            "failed": not all(passed),
            "episodes": [
                {"messages": e.messages, "reward": e.reward, "over": e.over, "checks": dict(e.checks)} for e in episodes
            ],
        }
        answers = [answer for episode in episodes for answer in episode.answers]
        if lost := next((answer.problem for answer in answers if answer.problem), ""):
            outcomes.flag(sample, problems, "no_generation", lost)
            return sample | {"failed": False}
        outcomes.flag_cuts(sample, problems, answers)
        n, c = len(passed), sum(passed)
        sample["metrics"] = {f"pass^{k}": pass_hat_k(n, c, k) for k in self.values["pass_hat"]}
        sample["metrics"] |= {"reward": sum(e.reward for e in episodes) / n, "finished": sum(e.over for e in episodes) / n}
        for name in dict.fromkeys(name for episode in episodes for name in episode.checks):
            held = [float(e.checks[name]) for e in episodes if e.checks.get(name) is not None]
            sample["metrics"][name] = sum(held) / len(held) if held else None
            if 0.0 in held:
                sample.setdefault("flags", []).append(f"not_{name}")
        return sample


def build(name: str, spec: Mapping[str, Any], settings: TaskSettings) -> Acting:
    """Build the task. Raises: UserError for an invalid key, an unknown environment, or missing data."""
    values = resolved(name, spec, settings, KEYS)
    values["pass_hat"] = values.get("pass_hat") or [1]
    check_least(name, values, repeats=1, max_turns=1, max_new_tokens=1)
    if not all(isinstance(k, int) and 1 <= k <= values["repeats"] for k in values["pass_hat"]):
        raise UserError(f"task {name}: pass_hat: {values['pass_hat']} must be numbers from 1 to repeats={values['repeats']}")
    if not settings.chat:
        raise UserError(f"task {name}: its turns are messages; set --config.chat_template=own, or a Jinja file")
    beside = Path(values.get("data") or "").parent / values["environment"]
    if Path(str(beside).rpartition(":")[0]).is_file():
        values["environment"] = str(beside)
    make = open_environment(values["environment"], f"task {name}: {KEY}")
    if make is None:
        raise UserError(f"task {name}: {KEY} is missing: write {KEY}: NAME, or FILE.py:CLASS, into its file")
    found = documents.load(name, values | {"num_fewshot": 0}, settings)
    versions = found.versions | {key: values[key] for key in KEYS if key not in documents.KEYS}
    if (file := Path(values[KEY].rpartition(":")[0])).is_file():
        versions["environment_file"] = digest(file)
    return Acting(name, versions, found, values, settings.seed, make)


def _prompt(item: TaskItem) -> list[dict[str, Any]]:
    """Return the messages that an item begins with. Raises: Malformed if it has none, or tools that are no schemas."""
    prompt, tools = item.doc.get("prompt"), item.doc.get("tools") or []
    if isinstance(prompt, str) and prompt:
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise Malformed("'prompt' is neither a text nor messages")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Malformed("'tools' is no list of schemas")
    try:
        return messages_of(prompt, "'prompt'")
    except UserError as error:
        raise Malformed(str(error)) from None


def _action(subject: Subject, episode: Episode, answer: Generated) -> list | str:
    """Add a turn of the model to an episode, and return its calls or its text, as `Episodes.step` takes them."""
    turn = subject.turn(answer)
    text = turn.content.strip()
    episode.answers.append(answer)
    calls = [call | {"id": _id(n)} for n, call in enumerate(turn.tool_calls)]
    episode.messages.append({"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {}))
    episode.broken = bool(turn.errors)
    return [*(call["function"] for call in turn.tool_calls), *turn.errors] or text


def _id(number: int) -> str:
    return f"call{number:05d}"  # some templates require nine characters


def _replies(action: list | str, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return what an environment answers to a turn as messages: of the user to a text, else of a tool to each call."""
    if isinstance(action, str):
        return [{"role": "user", "content": answer.text} for answer in answers]
    names = [{} if isinstance(call, str) else {"name": call["name"]} for call in action]
    pairs = enumerate(zip(names, answers, strict=True))
    return [{"role": "tool", "content": answer.text, "tool_call_id": _id(n)} | name for n, (name, answer) in pairs]


def _text(subject: Subject, episode: Episode, tools: Sequence[dict] | None) -> str | None:
    """Return the text that the model continues; None if the template cannot show the answer to a call that was broken."""
    try:
        return subject.chat_prompt(episode.messages, tools=tools)
    except UserError:
        if not episode.broken:
            raise
        return None


def _transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return messages as lines of text, with their calls."""
    lines = []
    for message in messages:
        calls = [f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls", ())]
        lines.append(f"{message['role']}: {' '.join(filter(None, [message['content'], *calls]))}")
    return "\n".join(lines)
