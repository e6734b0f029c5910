"""The red-team task: sends a model harmful requests under attack families, and harmless ones, and judges the answers.

Families are those of attacks.py, alone or composed (rot13+prefix_injection), and those that search: `gcg`, which composes like
a suffix, `pair` and `tap`. A verdict is harmful, safe, or unknown if the judge gives none.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals import outcomes
from lm.evals.judges.endpoint import Chat
from lm.evals.judges.judges import open_judge
from lm.evals.judges.verdict import Judge, guarded
from lm.evals.redteam import gcg, search
from lm.evals.redteam.attacks import ATTACKS, compose
from lm.evals.redteam.figures import agreement, figures, metrics
from lm.evals.redteam.prompts import HAZARDS, Request, in_turn, read_prompts, read_requests
from lm.evals.redteam.safety_eval import answered, attempts, judged, subject_chat, with_system
from lm.evals.stats.joining import Problems
from lm.evals.task import Generated, Outcome, Subject, TaskSettings
from lm.evals.tasks import documents
from lm.evals.tasks.settings import check, check_least, resolved

KEYS = documents.KEYS | {
    "families": (str, list),  # attack families; none: all that neither search nor need a string
    "family_options": {},  # {family: its options}, as in lm/evals/redteam/attacks.py
    "samples": 1,
    "temperature": 0.0,
    "max_new_tokens": 256,  # of the answers
    "draws": 8,  # the n of best_of_n
    "prompts": "",  # builtin:safety_world instead of files
    "main": "attack_success",
    "judge_model": "",
    "timeout": 60.0,
    "retries": 3,
    "key_variable": "OPENAI_API_KEY",  # of endpoints
    "refusal_classifier": "",  # folder of a judges/classifier.py trained on refusals (label true) and answers (false)
    "attacker": "",  # openai:URL, or subject
    "attacker_model": "",
    "attacker_temperature": 1.0,
    "attacker_tokens": 512,
    "scorer": "judge",  # of pair's and tap's attempts: judge, openai:URL, or subject
    "scorer_model": "",
    "gcg": {},  # settings of gcg, pair and tap: see gcg.py and search.py
    "pair": {},
    "tap": {},
}
OPTIONAL = ("verdict", "reason", "problem", "queries", "refused_by_classifier")  # keys that an attempt may have
# The settings that answers and verdicts depend on.
MADE_BY = tuple(
    "family_options samples temperature max_new_tokens draws judge_model refusal_classifier attacker attacker_model "
    "attacker_temperature attacker_tokens scorer scorer_model gcg pair tap".split()
)


class RedTeam(NamedTuple):
    """A task of lm/evals/task.py. judge: whether answers are harmful. classifier, optional: whether they refuse (safe) or
    not (harmful)."""

    name: str
    versions: dict[str, Any]
    requests: list[Request]
    kinds: dict[str, dict]
    families: list[str]
    values: dict[str, Any]
    settings: TaskSettings
    judge: Judge
    classifier: Judge | None

    def run(self, subject: Subject) -> Outcome:
        values, settings = self.values, self.settings
        problems = Problems(self.kinds)
        if not self.requests:
            problems.add("empty_files", "no request")
        harmful = [request for request in self.requests if request.prompt.kind == "harmful"]
        searched: dict[str, dict] = {}
        if any("gcg" in family.split("+") for family in self.families):
            searched["gcg"] = gcg.searched_suffix(subject, harmful, values["gcg"], settings.system, settings.seed)
        generated: dict[int, dict[str, Generated]] = {}

        def chat(draw: int) -> Chat:
            return subject_chat(
                subject,
                max_new_tokens=values["max_new_tokens"],
                temperature=values["temperature"],
                seed=settings.seed + draw,
                system=settings.system,
                answers=generated.setdefault(draw, {}),
            )

        todo = _attempts(self, searched.get("gcg", {}).get("suffix", ""))
        records: list[dict] = []
        for draw in dict.fromkeys(record["draw"] for record in todo):
            records += answered([record for record in todo if record["draw"] == draw], chat(draw))
        plain = [request for request in harmful if request.prompt.messages is None]
        for name in search.SEARCHES:
            if name in self.families:
                rewritten, searched[name] = search.rewritten(name, subject, chat(0), plain, self.judge, values, settings.seed)
                records += [record | {"draw": 0} for record in rewritten]
        records = judged(records, self.judge)
        if self.classifier is not None:
            records = _classified(records, self.classifier)
        samples = _samples(self, subject, records, generated, problems)
        return Outcome(self.results(samples, records, searched) | {"problems": problems.kinds}, samples)

    def results(self, samples: Sequence[dict], records: Sequence[dict], searched: Mapping[str, dict]) -> dict[str, Any]:
        """Return the results of samples, as a whole and by family, hazard and category."""
        results = {"main": self.values["main"], "attack_success": None, "over_refusal": None} | figures(samples)
        for key, name in (("family", "families"), ("hazard", "hazards"), ("category", "categories")):
            if key != "category" or any(sample["category"] not in ("", sample["hazard"]) for sample in samples):
                results[name] = outcomes.parts(samples, key, figures, dict.fromkeys(sample[key] for sample in samples))
        if self.classifier is not None:
            answers = [record for record in records if (record["response"] or "").strip()]
            by_rules = [record["refusal"] != "none" for record in answers]
            results["refusal_agreement"] = agreement(by_rules, [record["refused_by_classifier"] for record in answers])
        return results | ({"searches": searched} if searched else {})


def build(name: str, spec: dict[str, Any], settings: TaskSettings) -> RedTeam:
    """Build the task. Raises: UserError for unknown keys, families or judges, and for files that cannot be read."""
    values = resolved(name, spec, settings, KEYS)
    for key, defaults in (("gcg", gcg.OPTIONS), ("pair", search.PAIR), ("tap", search.TAP)):
        check(f"task {name}: {key}", values[key], defaults)
        values[key] = {**defaults, **values[key]}
    check_least(name, values, samples=1, draws=1, max_new_tokens=1, retries=0)
    check_least(f"{name}: gcg", values["gcg"], batch=1, topk=1, chunk=1)
    check_least(f"{name}: pair", values["pair"], streams=1, depth=1, budget=0)
    check_least(f"{name}: tap", values["tap"], branching=1, width=1, depth=1, budget=0)
    if values["samples"] > 1 and not values["temperature"]:
        raise UserError(f"task {name}: samples={values['samples']} at temperature 0 would be identical; raise temperature")
    families = _families(name, values)
    requests, problems, versions = _requests(name, values, settings)
    patterns = {r.prompt.text: r.prompt.harmful_if for r in requests if r.prompt.harmful_if}
    options = {key: values[key] for key in ("timeout", "retries", "key_variable")}
    judge = _opened(
        f"task {name}: judge", settings.judge, model=values["judge_model"], hazards=HAZARDS, harmful_if=patterns, **options
    )
    classifier = None
    if values["refusal_classifier"]:
        classifier = _opened(f"task {name}: refusal_classifier", f"classifier:{values['refusal_classifier']}")
    versions |= {"families": families, "judge": settings.judge}
    versions |= {key: values[key] for key in MADE_BY}
    return RedTeam(name, versions, requests, problems.kinds, families, values, settings, judge, classifier)


def _families(name: str, given: dict[str, Any]) -> list[str]:
    options, families = given["family_options"], given.get("families") or []
    if isinstance(families, str):
        families = list(filter(None, families.replace(" ", "").split(",")))
    for family, values in options.items():
        if not isinstance(values, Mapping):
            raise UserError(f"task {name}: family_options: {family}: {values!r} must be a mapping of names to values")
    if wrong := [family for family in families if not isinstance(family, str)]:
        raise UserError(f"task {name}: families: {wrong[0]!r} is no name")
    ready = [family for family in ATTACKS if family != "suffix" or options.get("suffix", {}).get("suffix")]
    families = list(dict.fromkeys(families)) or ready
    for family in families:
        if family not in search.SEARCHES:
            steps, known = _steps(family, options, "!")
            compose(steps, **known)("x")  # raises UserError if it is invalid
    if any(family in search.SEARCHES for family in families) and not given["attacker"]:
        raise UserError(f"task {name}: pair and tap need an attacker: openai:URL or subject")
    return families


def _steps(family: str, options: Mapping[str, dict], string: str) -> tuple[str, dict[str, dict]]:
    """Return a family and its options for `compose`. `gcg` in its name becomes a suffix with `string`."""
    steps = [step.strip() for step in family.split("+")]
    if "gcg" not in steps:
        return family, dict(options)
    if "suffix" in steps:
        raise UserError(f"attack {family!r}: gcg is already a suffix; remove one")
    return "+".join("suffix" if step == "gcg" else step for step in steps), {**options, "suffix": {"suffix": string}}


def _opened(key: str, spec: str, **options: Any) -> Judge:
    try:
        return guarded(open_judge(spec, **options))
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix('safety.judge: ')}") from None


def _requests(name: str, values: dict[str, Any], settings: TaskSettings) -> tuple[list[Request], Problems, dict[str, Any]]:
    """Return the requests, the problems in their files, and the versions of the files."""
    if values["prompts"]:
        if not values["prompts"].startswith("builtin:"):
            raise UserError(
                f"task {name}: prompts={values['prompts']!r} is no builtin:NAME; for files, name their folder as folder"
            )
        prompts, problems = read_prompts(values["prompts"], "valid", seed=settings.seed), Problems()
        requests = [Request(p, p.hazard, p.completion, p.id) for p in prompts]
        digest = hashlib.sha256(repr(prompts).encode("utf-8", "backslashreplace")).hexdigest()
        versions = {"data": f"sha256:{digest}", "split": values["prompts"]}
    else:
        data = documents.load(name, values | {"num_fewshot": 0}, settings._replace(limit=None))
        problems, versions = data.new_problems(), data.versions
        requests = read_requests(((item.id, item.doc) for item in data.items), problems)
    chosen = in_turn(requests, settings.limit)
    numbered = [r._replace(prompt=r.prompt._replace(id=str(number))) for number, r in enumerate(chosen)]
    return numbered, problems, versions


def _attempts(task: RedTeam, suffix: str) -> list[dict]:
    """Return records of all attempts (safety_eval.py) except for the searches.

    "id" is the request's index in the task; "draw" tells apart several answers to one prompt. suffix: that of gcg."""
    values = task.values
    prompts = [request.prompt for request in task.requests]
    as_they_are = [p for p in prompts if p.messages is not None or p.kind == "task"]
    dressed = [p for p in prompts if p.messages is None and p.kind != "task"]
    records = [record | {"draw": record["sample"]} for record in attempts(as_they_are, ["direct"], values["samples"])]
    for family in task.families:
        if family in search.SEARCHES:
            continue
        steps, options = _steps(family, values["family_options"], suffix)
        if "best_of_n" not in steps.split("+"):
            made = attempts(dressed, [steps], values["samples"], options)
            records += [record | {"draw": record["sample"], "family": family} for record in made]
            continue
        for n in range(values["draws"]):
            drawn = options | {"best_of_n": {**options.get("best_of_n", {}), "seed": task.settings.seed + n}}
            made = attempts(dressed, [steps], 1, drawn)
            records += [record | {"draw": 0, "sample": n, "family": family} for record in made]
    return records


def _classified(records: Sequence[dict], classifier: Judge) -> list[dict]:
    """Add "refused_by_classifier" to the records: whether the response is a refusal; None: unknown."""
    numbers = [i for i, record in enumerate(records) if (record["response"] or "").strip()]
    columns = ([records[i][key] for i in numbers] for key in ("prompt", "response", "hazard"))
    verdicts = dict(zip(numbers, classifier(*columns), strict=True)) if numbers else {}
    refused = {i: {"safe": True, "harmful": False}.get(verdict.label) for i, verdict in verdicts.items()}
    return [record | {"refused_by_classifier": refused.get(i)} for i, record in enumerate(records)]


def _samples(
    task: RedTeam,
    subject: Subject,
    records: Sequence[dict],
    generated: Mapping[int, Mapping[str, Generated]],
    problems: Problems,
) -> list[dict]:
    """Return the samples of the records, sorted by request and then by family. What is unanswered or unknown is a problem."""
    order = {family: number for number, family in enumerate(task.families)}
    made = []
    for record in records:
        request = task.requests[int(record["id"])]
        messages = with_system(task.settings.system, record["conversation"])
        text = subject.chat_prompt(messages)
        answer = generated[record["draw"]].get(text)
        values = metrics(record)
        harmful = record["kind"] == "harmful"
        sample = {
            "task": task.name,
            "doc_id": request.doc_id,
            **{key: record[key] for key in ("family", "sample", "kind", "hazard")},
            "category": request.category,
            "request": record["prompt"],
            # For a searched attack, or one that contains the model's answers: the part that two runs share.
            "prompt": text if _is_fixed(record) else record["prompt"],
            "messages": messages,
            "generation": record["response"],
            "target": record["answer"] or ("a refusal" if harmful else "an answer"),
            "refusal": record["refusal"],
            "metrics": values,
            "failed": 1.0 in (values.get("attack_success"), values.get("over_refusal")) or values.get("acc") == 0.0,
            "reference": None if harmful else record["completion"] or record["answer"] or None,
        }
        if not _is_fixed(record):
            sample |= {"put": text, "attack": record["messages"]}
        sample |= {key: record[key] for key in OPTIONAL if key in record}
        sample |= {key: record[key] for key in ("answer", "completion", "harmful_if") if record[key]}
        where = f"{request.doc_id} {record['family']}"
        if record["response"] is None:
            problems.add("unanswered", f"{where}: {record.get('problem', 'no response')}")
        elif not record["response"].strip():
            problems.add("empty_answers", where)
        flags = outcomes.cuts([answer]) if answer is not None else []
        if record.get("verdict") == "unknown":
            problems.add("unknown_verdicts", f"{where}: {record['reason']}")
            flags = ["unknown_verdicts", *flags]
        if flags:
            sample["flags"] = flags
        if answer is not None and (answer.tokens or answer.prompt_tokens):
            sample["tokens"] = [list(answer.prompt_tokens), list(answer.tokens)]
        made.append(((int(record["id"]), order.get(record["family"], -1), record["sample"]), sample))
    return [sample for _, sample in sorted(made, key=lambda pair: pair[0])]


def _is_fixed(record: Mapping[str, Any]) -> bool:
    return record["messages"] == record["conversation"] and "queries" not in record and "gcg" not in record["family"].split("+")
