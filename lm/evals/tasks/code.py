"""Run programs that the model writes against a benchmark's tests, in the format of HumanEval (Chen et al. 2021, "Evaluating
large language models trained on code").

A document has prompt (the start of a program), test (which defines check(candidate)) and entry_point (the function to check). A
completion passes if test and check(entry_point) run to their end, while prompt + completion answers their calls from a process
of its own (check_many in lm/sandbox/run.py), so that it cannot forge the verdict.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.errors import UserError
from lm.evals.stats.joining import Malformed, text
from lm.evals.stats.measures import pass_at_k
from lm.evals.task import Generated, Outcome, Subject, TaskSettings, flag, flag_cuts
from lm.evals.tasks import documents, generation, prompting
from lm.evals.tasks.aggregate import about, summary, versions_of
from lm.evals.tasks.documents import Documents, TaskItem
from lm.evals.tasks.prompting import Context, Prompts
from lm.evals.tasks.settings import resolved
from lm.parallel.hosts import from_first
from lm.sandbox import run as sandbox

KEYS = (
    documents.KEYS
    | prompting.KEYS
    | {"generation_kwargs": dict, "repeats": int, "pass_at": list, "cut": str, "timeout": (int, float), "memory_mib": int}
)


class Code(NamedTuple):
    """A task of kind code. pass_at: the values k of pass@k. cut: text that ends a completion, such as ```."""

    name: str
    spec: Mapping[str, Any]
    documents: Documents
    prompts: Prompts
    sampling: Mapping[str, Any]
    seed: int
    repeats: int
    pass_at: tuple[int, ...]
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome:
        problems = self.documents.new_problems()
        asked: list[tuple[TaskItem, Context]] = []
        for item in self.documents.items:
            try:
                for column in ("prompt", "test", "entry_point"):
                    text(item.doc, column)
                asked.append((item, self.prompts.contexts(item, subject)[0]))
            except Malformed as why:
                problems.add("malformed_items", f"{item.id}: {why}")
        texts = [context.text for _, context in asked]
        answers = generation.generated(subject, texts, self.sampling, self.repeats, self.seed)
        programs = [self.program(item, one) for (item, _), some in zip(asked, answers, strict=True) for one in some]
        bounds = {"timeout": self.spec.get("timeout") or 3.0, "memory_mib": self.spec.get("memory_mib") or 512}
        ran = from_first(lambda: sandbox.check_many(programs, **bounds))
        samples = []
        for number, ((item, context), some) in enumerate(zip(asked, answers)):
            ends = ran[number * self.repeats : (number + 1) * self.repeats]
            sample = self.sample(item, context, some, ends)
            lost = [one.problem for one in some if one.problem] + [e.stderr for e in ends if e.stderr.startswith("[not run")]
            if lost:
                flag(sample, problems, "no_generation" if some[0].problem else "not_run", lost[0])
                sample |= {"metrics": dict.fromkeys(sample["metrics"]), "failed": False}
            else:
                flag_cuts(sample, problems, some)
            samples.append(sample)
        scored = [sample for sample in samples if None not in sample["metrics"].values()]
        results = {"n": len(scored), "num_fewshot": self.documents.num_fewshot, "repeats": self.repeats}
        names = [f"pass@{k}" for k in self.pass_at]
        return Outcome(results | summary(scored, names, problems, self.spec), samples)

    def completion(self, answer: Generated) -> str:
        return answer.text.split(self.spec["cut"])[0] if self.spec.get("cut") else answer.text

    def program(self, item: TaskItem, answer: Generated) -> sandbox.Check:
        prompt, name = item.doc["prompt"], item.doc["entry_point"]
        return sandbox.Check(f"{prompt}{self.completion(answer)}\n", f"{item.doc['test']}\ncheck({name})\n", prompt, name)

    def sample(
        self, item: TaskItem, context: Context, answers: Sequence[Generated], ends: Sequence[sandbox.Result]
    ) -> dict[str, Any]:
        passed = [end.outcome == "ok" and end.finished for end in ends]
        return {
            **about(self.name, self.spec, item, self.documents),
            "prompt": context.text,
            "target": None,
            "generation": answers[0].text,
            "completion": self.completion(answers[0]),
            **({"generations": [answer.text for answer in answers]} if len(answers) > 1 else {}),
            **({"reference": item.doc["canonical_solution"]} if item.doc.get("canonical_solution") else {}),
            "test": item.doc["test"],
            "entry_point": item.doc["entry_point"],
            "outcomes": [
                "passed" if good else end.outcome if end.outcome != "ok" else "left early" for good, end in zip(passed, ends)
            ],
            "complaint": next((_complaint(end.stderr) for good, end in zip(passed, ends) if not good), ""),
            "metrics": {f"pass@{k}": pass_at_k(len(passed), sum(passed), k) for k in self.pass_at},
            "failed": not any(passed),
        } | ({"messages": list(context.messages)} if context.messages is not None else {})


def _complaint(stderr: str) -> str:
    """Return the exception's name. Its message may hold memory addresses, which differ between runs."""
    return stderr.strip().rpartition("\n")[2].partition(":")[0][:80]


def build(name: str, spec: dict, settings: TaskSettings) -> Code:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    spec = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    repeats, ks = spec.get("repeats") or 1, tuple(spec.get("pass_at") or [1])
    if not all(isinstance(k, int) and 1 <= k <= repeats for k in ks):
        raise UserError(f"task {name}: pass_at: {list(ks)} must be numbers from 1 to repeats={repeats}")
    read = documents.load(name, spec, settings)
    prompts = prompting.open_prompts(name, spec, settings, read)
    sampling = generation.sampling_of(name, spec)
    return Code(name, spec, read, prompts, sampling, settings.seed, repeats, ks, versions_of(spec, settings, read))
