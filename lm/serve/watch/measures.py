"""Measure exchanges: the numbers, languages and words of a prompt and its answer that the monitor follows."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from data.filters.language import identify
from lm.evals.judges.judges import GOES_ALONG
from lm.evals.judges.refusals import is_refusal
from lm.evals.judges.verdict import Judge
from lm.evals.stats.repetition import repetition, split_words
from lm.infer.engine.request import Likely

if TYPE_CHECKING:
    from lm.serve.seen import Seen

TOP = 5  # likeliest tokens of which the entropy is computed
READ = 8192  # characters of a prompt and of an answer that are measured
BUCKETS = 1 << 13  # of hashed words
# Share of 4-grams that occurred before, from which an answer counts as repetitive: Gopher's limit for duplicate 5-grams of a
# page (Rae et al. 2021, table A1).
REPETITIVE = 0.15


class Measures(NamedTuple):
    """Measures of an exchange. None: does not apply, such as the language of an empty text.

    refusal, unsafe: 0 or 1. repetition: share of the answer's 4-grams that occurred before. length, prompt_length: tokens.
    entropy: nats a token. language, prompt_language: ISO 639 codes. words: distinct buckets of the words of both texts.
    """

    refusal: float | None = None
    unsafe: float | None = None
    repetition: float | None = None
    length: float | None = None
    prompt_length: float | None = None
    entropy: float | None = None
    language: str | None = None
    prompt_language: str | None = None
    words: tuple[int, ...] | None = None


def measure(exchanges: Sequence["Seen"], judge: Judge | None = None) -> list[Measures]:
    """Return the measures of finished exchanges: of the user's last message, and of choice 0.

    An answer is unsafe if a rule flags it; or if `judge` calls it harmful; or, without a judge, if a rule flags the prompt and
    the answer neither refuses nor is empty but begins as one that complies. A verdict "unknown" is no flag.
    """
    prompts, answers = [one.prompt[:READ] for one in exchanges], [one.answers()[0][:READ] for one in exchanges]
    languages, _ = identify([*prompts, *answers])
    verdicts = judge(prompts, answers, [""] * len(exchanges)) if judge else [None] * len(exchanges)
    measured = []
    for n, (one, prompt, answer, verdict) in enumerate(zip(exchanges, prompts, answers, verdicts, strict=True)):
        flagged, words = {decision.where for decision in one.decisions}, split_words(answer)
        refused = is_refusal(answer)
        complies = "input" in flagged and not refused and bool(GOES_ALONG.match(answer))
        harmful = verdict.label == "harmful" if verdict else complies
        measured.append(
            Measures(
                refusal=float(refused),
                unsafe=float("output" in flagged or harmful),
                repetition=repetition(words),
                length=one.tokens[0],
                prompt_length=one.prompt_tokens,
                entropy=entropy(one.likely),
                language=str(languages[len(exchanges) + n]) if answer.strip() else None,
                prompt_language=str(languages[n]) if prompt.strip() else None,
                words=buckets([*split_words(prompt), *words]),
            )
        )
    return measured


def buckets(words: Sequence[str]) -> tuple[int, ...] | None:
    """Return the distinct buckets of words, ascending."""
    return tuple(sorted({xxhash.xxh3_64_intdigest(word.encode("utf-8", "replace")) % BUCKETS for word in set(words)})) or None


def entropy(likely: Sequence[Likely]) -> float | None:
    """Return the mean entropy over tokens in nats, −Σ p log p, over the TOP likeliest tokens and "any other token" as one.

    It is a lower bound of the whole vocabulary's. None: no token reports TOP alternatives.
    """
    found = []
    for one in likely:
        if len(one.top) >= TOP:
            logs = [value for _, value in one.top[:TOP]]
            rest = max(0.0, 1 - sum(map(math.exp, logs)))
            found.append(-sum(math.exp(log) * log for log in logs if log > -700) - (rest * math.log(rest) if rest else 0))
    return sum(found) / len(found) if found else None
