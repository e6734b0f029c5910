"""IFEval: the model answers, and programs verify that it followed the instructions (lm/evals/tasks/ifeval/scores.py)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lm.evals.stats.joining import Malformed
from lm.evals.task import Outcome, Subject, TaskSettings, flag_cuts
from lm.evals.tasks import documents, generation, prompting
from lm.evals.tasks.aggregate import about, versions_of
from lm.evals.tasks.documents import Documents
from lm.evals.tasks.ifeval import scores as ifeval
from lm.evals.tasks.prompting import Prompts
from lm.evals.tasks.settings import resolved

KEYS = documents.KEYS | prompting.KEYS | {"generation_kwargs": dict}


class Following(NamedTuple):
    """A task of kind ifeval."""

    name: str
    documents: Documents
    prompts: Prompts
    sampling: Mapping[str, Any]
    seed: int
    versions: dict[str, Any]

    def run(self, subject: Subject) -> Outcome:
        """Return the scorer's metrics. The scorer treats items with the same prompt as duplicates and does not score them."""
        problems = self.documents.new_problems()
        asked = []
        for item in self.documents.items:
            try:
                ifeval.read_item(0, item.doc)  # raises Malformed
                asked.append((item, self.prompts.contexts(item, subject)[0]))
            except Malformed as why:
                problems.add("malformed_items", f"{item.id}: {why}")
        answers = generation.generated(subject, [context.text for _, context in asked], self.sampling, 1, self.seed)
        given, said = [], []
        for (item, context), (answer,) in zip(asked, answers, strict=True):
            if answer.problem:
                problems.add("no_generation", f"{item.id}: {answer.problem}")
                continue
            # The scorer names an item by its key. A unique key per row lets its samples be matched to items again.
            said.append((item, context, answer))
            given.append(item.doc | {"key": len(said) - 1})
        responses = [{"prompt": item.doc.get("prompt"), "response": answer.text} for item, _, answer in said]
        results, verified = ifeval.score(given, responses)
        for kind, problem in results.pop("problems").items():
            counted = problems.kinds.setdefault(kind, {"n": 0, "examples": []})
            counted["n"] += problem["n"]
            counted["examples"] += problem["examples"]
        del results["missing"]
        samples = []
        for one in verified:
            item, context, answer = said[int(one["id"])]
            marks = {kind: [instruction[kind] for instruction in one["instructions"]] for kind in ("strict", "loose")}
            samples.append(
                {
                    **about(self.name, {}, item, self.documents),
                    "prompt": context.text,
                    "target": None,
                    "generation": answer.text,
                    "instructions": one["instructions"],
                    "instruction_id_list": item.doc["instruction_id_list"],
                    "kwargs": item.doc["kwargs"],
                    "metrics": {f"prompt_{kind}": float(all(marks[kind])) for kind in marks}
                    | {f"instruction_{kind}": sum(marks[kind]) / len(marks[kind]) for kind in marks},
                    "failed": not all(marks["strict"]),
                }
                | ({"messages": list(context.messages)} if context.messages is not None else {})
            )
            flag_cuts(samples[-1], problems, [answer])
        return Outcome(results | {"problems": problems.kinds}, samples)


def build(name: str, spec: dict, settings: TaskSettings) -> Following:
    """Build the task. Raises: UserError for an invalid key or missing data."""
    spec = resolved(name, spec, settings, KEYS, needed=("doc_to_text",))
    read = documents.load(name, spec, settings)
    prompts = prompting.open_prompts(name, spec, settings, read)
    sampling = generation.sampling_of(name, spec)
    return Following(name, read, prompts, sampling, settings.seed, versions_of(spec, settings, read))
