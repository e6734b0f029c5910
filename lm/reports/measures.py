"""Measures of an aligned model: what each means, which is its method's own, and which way is better."""

from lm.align.alarms import is_better, words

OWN = ("reward", "rewards/accuracies", "accuracy", "rewards/margins", "agreement")
NEUTRAL = {"kl", "length", "entropy", "logps", "chosen", "rejected", "min", "max", "ratio"}
MEANINGS = {  # of measures of the model before and after, all on held-out examples
    "reward": "mean reward of the model's answers to held-out prompts",
    "mean_length": "mean length of these answers, in tokens",
    "loss": "loss of the method on held-out examples",
    "entropy": "mean entropy of the model's next token, in nats",
    "mean_token_accuracy": "share of the tokens of held-out answers that the model finds likeliest",
    "rewards/accuracies": "share of held-out pairs whose chosen answer has the greater reward",
    "rewards/margins": "mean reward of the chosen answer − that of the rejected one",
    "rewards/chosen": "mean reward of chosen answers: β · log(policy / reference)",
    "rewards/rejected": "mean reward of rejected answers",
    "logps/chosen": "mean log-probability of chosen answers, in nats",
    "logps/rejected": "mean log-probability of rejected answers, in nats",
    "kl": "divergence from the reference or the teacher, in nats per token",
    "nll": "negative log-likelihood of held-out answers, in nats per token",
}
OF_METHOD = {
    ("reward", "accuracy"): "share of held-out pairs whose chosen answer has the greater score",
    ("reward", "margin"): "mean score of the chosen answer − that of the rejected one",
    ("sft", "loss"): "loss on the tokens of held-out answers, in nats per token",
    ("distill", "agreement"): "share of held-out tokens where student and teacher find the same token likeliest",
}


def meaning(measure: str, measures: dict, method: str | None) -> str:
    """Return what a measure says, from `measures` of the report or of known names, or ""."""
    own = "mean of this reward function, before its weight" if measure.startswith("rewards/") else ""
    return measures.get(measure) or OF_METHOD.get((method, measure)) or MEANINGS.get(measure, own)


def own_measure(after: dict) -> str | None:
    """Return the measure that a method optimises, the first known one of: rewards of generated answers, preference accuracy,
    and then any in order."""
    known = {name for name, value in after.items() if value is not None}
    return next((name for name in (*OWN, *after) if name in known), None)


def judged(measure: str, before: float, after: float) -> str:
    """Return the CSS class of a change: good, bad, or "" for no change and for measures without a direction."""
    if before == after or words(measure) & NEUTRAL:
        return ""
    return "good" if is_better(measure, before, after) else "bad"
