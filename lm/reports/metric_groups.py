"""What the pages say of metrics: groups of logged ones with titles, notes and units of their charts; and, of the measures of an
aligned model, what each means, which is its method's own, and which way is better."""

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from lm.align.alarms import is_better, words


class Group(NamedTuple):
    """A chart with all metrics that match one of its patterns.

    unit: of its y axis. compared: the page over many runs has charts of these metrics.
    """

    title: str
    note: str
    unit: str
    patterns: tuple[str, ...]
    compared: bool = True


GROUPS = (
    Group("Loss", "of the method", "loss", ("loss",)),
    Group("Bits per byte", "of held-out text; lower is better", "bits per byte", ("bits_per_byte",)),
    Group("Bits per byte of each source", "of held-out text; lower is better", "bits per byte", ("bits_per_byte/*",)),
    Group("Reward", "mean over completions; the band is one standard deviation of them", "reward", ("reward",)),
    Group("Each reward", "mean of each function before its weight", "reward", ("rewards/*/mean",)),
    Group("Rewards of pairs", "chosen and rejected answers", "reward", ("rewards/chosen", "rewards/rejected")),
    Group("Margin", "reward of the chosen answer − that of the rejected one", "reward", ("rewards/margins",)),
    Group("Preference accuracy", "pairs whose chosen answer has the greater reward", "share", ("rewards/accuracies",)),
    Group("Accuracy", "on the tokens or pairs of a batch", "share", ("accuracy", "mean_token_accuracy")),
    Group(
        "Distance from the reference",
        "Kullback-Leibler divergence from the model before training",
        "nats per token",
        ("kl", "objective/kl", "policy/approxkl_avg"),
    ),
    Group("Entropy", "of the policy; at 0 it always writes the same", "nats per token", ("entropy", "objective/entropy")),
    Group(
        "Clipped ratios",
        "tokens with a clipped ratio",
        "share of the tokens",
        ("clip_ratio/*_mean", "policy/clipfrac_avg"),
        compared=False,
    ),
    Group("Completion length", "of the answers that the model wrote", "tokens", ("completions/*length",)),
    Group(
        "Cut and idle",
        "completions that the limit cut, and groups of equal rewards, which teach nothing",
        "share",
        ("*/clipped_ratio", "frac_reward_*"),
        compared=False,
    ),
    Group("Log-probabilities", "of the answers under the policy", "nats per answer", ("logps/*",), compared=False),
    Group("Thought length", "of the thoughts before answers", "tokens", ("thoughts/*length",)),
    Group("Cut thoughts", "rollouts with a thought that the budget closed", "share", ("thoughts/cut_ratio",), compared=False),
    Group("Tools", "calls of tools, and the share that failed", "per completion", ("tools/*",), compared=False),
    Group(
        "Sampler and trainer",
        "difference of their log-probabilities, and the weights that correct it",
        "nats, or weight",
        ("sampling/*",),
        compared=False,
    ),
    Group("Learning rate", "as applied", "learning rate", ("learning_rate",)),
    Group("Gradient norm", "global, before clipping", "norm", ("grad_norm",)),
    Group("Throughput", "trained tokens", "tokens per second", ("tokens_per_second",)),
)
LOSSES = {  # method: (note, unit) of its loss
    "pretraining": ("lower is better", "nats per token"),
    "sft": ("of the answers' tokens", "nats per token"),
    "dpo": ("of the order of two answers; ln 2 = 0.693 before training", "nats per pair"),
    "reward": ("of the order of two answers, or of labelled steps", "nats"),
    "grpo": ("of the policy; it may stay near 0 while the reward rises", "loss"),
    "rloo": ("of the policy; it may stay near 0 while the reward rises", "loss"),
    "ppo": ("of policy and values; it may stay near 0 while the reward rises", "loss"),
}
# Metrics without a curve here: shown on the axis or in a tile, or with their own chart.
LEFT_OUT = ("step", "tokens", "skipped", "spike", "spikes", "rewinds", "skipped_batches", "mfu", "tflops")
LEFT_OUT += ("reward_std", "seconds/*", "rewards/*/std", "clip_ratio/*_m[ai][xn]")
LEFT_OUT += ("goodput", "stragglers/*", "system_*")
# Below the others, on the machine.
FOLDED = ("Learning rate", "Gradient norm", "Throughput", "Clipped ratios", "Sampler and trainer")
SCHEDULE = ("*learning_rate*",)  # curves given by a formula are not smoothed
COLOURS = ("train", "valid", "third", "fourth", "fifth", "sixth")  # CSS variables of the page, for the curves of a chart


def matches(metric: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(metric, pattern) for pattern in patterns)


def group_of(metric: str) -> int | None:
    """Return the index of the first of GROUPS that has a metric, without its prefix "valid_"; None if none has it."""
    return next((i for i, group in enumerate(GROUPS) if matches(metric, group.patterns)), None)


# Measures of an aligned model.

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
