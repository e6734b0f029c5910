"""Arguments that make a command of a page short. What the page says itself stays as it is."""

import shlex

from tests.docs.command_checks import VERBS
from tests.docs.doc_commands import ASSIGNMENTS, simple
from tests.verbs.runs import SETTINGS

TINY = {key: value for key, value in SETTINGS.items() if key.startswith("model.")} | {
    "data.max_bytes": 300_000,
    "batch_size": 8,
    "sequence_length": 64,
    "dtype": "float32",
    "valid_batches": 1,
    "model.vocab_size": 512,
    "samples": "()",
}
ALIGNED = {
    "steps": 2,
    "batch_size": 8,
    "sequence_length": 128,
    "valid_batches": 1,
    "num_samples": 1,
    "data.max_examples": 40,
    "rollout.max_new_tokens": 4,
    "rollout.max_prompt_tokens": 100,
}
SAFETY = {
    "safety.judge": "refusal",
    "sequence_length": 512,
    "safety.limit": 2,
    "safety.train_families": "direct",
    "safety.held_out_families": "rot13",
    "safety.sft.steps": 1,
    "safety.sft.batch_size": 4,
    "safety.dpo.steps": 1,
    "safety.dpo.batch_size": 4,
}


def shorter(command: str) -> str:
    """Return a line with these arguments after its own, if it is one command of a verb that takes long."""
    parts = simple(command)
    if len(parts) != 1 or not (keys := _keys(parts[0])):
        return command
    given = {word.removeprefix("--config.").split("=")[0] for word in parts[0]}
    more = [f"--config.{key}={value}" for key, value in keys.items() if key not in given]
    return ASSIGNMENTS.match(command)[0] + shlex.join([*parts[0], *more])


def _keys(words: list[str]) -> dict:
    verb = next((word for word in words if word in VERBS), "")
    if verb == "train.py" and not any(word.startswith("--describe") for word in words):
        return {"steps": 3, **TINY}
    if verb == "align.py":
        return ALIGNED | (SAFETY if any("safety" in word for word in words) else {})
    return {"limit": 2, "num_fewshot": 0, "max_length": 256} if verb == "evaluate.py" else {}
