"""Our model as the Subject of tasks: requests are batched by length on the current mesh, and answers are cached."""

import functools
import json
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data.chat.media.encoding import MAX, Kept
from data.chat.template import opens_thought
from data.chat.thoughts import thought_length
from lm.evals.engine import generate as drawing
from lm.evals.engine import likelihood
from lm.evals.engine.answers_cache import Answers, fingerprint, key
from lm.evals.engine.encoding import Encoding
from lm.evals.engine.generate import Answer, Ask, Writer
from lm.evals.engine.likelihood import Request, Scored, Work
from lm.evals.task import Continuation, Generated, Likelihood, Prompt, Rolled
from lm.infer.calls import Turn, parse_turn
from lm.infer.engine.thought import budget_of
from lm.model.transformer import Transformer
from lm.parallel.hosts import from_first, is_first
from lm.progress import progress

SHARE = 0.5  # of the free memory, for a packed copy of the weights


class ModelSubject:
    """A Subject that runs a model.

    Args:
      name: the model's name in results. max_length: the maximum number of tokens to read; None: the model's positions.
      batch_tokens: slots of a batch; None: by the kind of device. cache: a file of answers (answers_cache.py), or None. With
        several processes, only the first one opens it.
      progress: whether to show progress on stderr; None: only on the first host.
      room: bytes for a packed copy of the weights (lm/infer/engine/local.py); None: a share of the free memory.
    Attributes:
      stats: totals so far: {"requests", "cached", "tokens" read without padding, "generated" tokens, "thoughts": tokens of
        thoughts among the answers, "seconds"}.
      thought_budget: most tokens of the thought of an answer, beside the answer's own; None: they share `max_new_tokens`.
    """

    def __init__(
        self,
        model: Transformer,
        encoding: Encoding,
        *,
        name: str,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        cache: Path | None = None,
        progress: bool | None = None,
        room: float | None = None,
    ):
        self.model, self.encoding, self.name = likelihood.dropless(model), encoding, name
        self.max_length, self.batch_tokens = max_length or model.config.max_positions, batch_tokens
        self.stats = dict.fromkeys(("requests", "cached", "tokens", "generated", "thoughts"), 0) | {"seconds": 0.0}
        self.thought_budget: int | None = None
        self._remembers = cache is not None
        self._answers = Answers(cache) if self._remembers and is_first() else None
        self._identity = fingerprint(model) if self._remembers else ""
        self._progress = is_first() if progress is None else progress
        self._compiled: set[tuple] = set()  # shapes of batches that were run
        self._writer: Writer | None = None
        self._room = room

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """Return likelihoods. The likelihood is NaN if a request is empty or its continuation is longer than max_length."""
        begin = time.perf_counter()
        pairs = self.encoding.pairs([(r.context, r.continuation) for r in requests])
        encoded = [Request(*pair) for pair in pairs]
        contexts: dict[tuple[int, int], tuple[int, ...]] = {}
        likelihoods = []
        for request, scored in zip(encoded, self._scored(encoded)):
            put = likelihood.cut(request, self.max_length)
            if scored is None or put is None:
                likelihoods.append(Likelihood(float("nan"), False, tuple(request.continuation), tuple(request.context)))
                continue
            where = id(request.context), len(put.context)  # choices share the tuple of their context
            context = contexts.setdefault(where, tuple(put.context))
            total = float(np.sum(scored.logps, dtype=np.float64))
            cut = len(put.context) < len(request.context)
            likelihoods.append(Likelihood(total, bool(scored.greedy.all()), tuple(put.continuation), context, cut))
        self._done(len(requests), begin)
        return likelihoods

    def rolled(self, texts: Sequence[str]) -> list[Rolled]:
        """Score each token of each text once, in windows of at most `max_length` (see `windows`).

        The first token is scored after the begin symbol, even if it is a begin symbol itself."""
        begin = time.perf_counter()
        ids = self.encoding.many(texts)
        split = [windows(some, self.encoding.prefix, self.max_length) for some in ids]
        scored = iter(self._scored([request for some in split for request in some]))
        rolled = []
        for some, all_ids in zip(split, ids):
            logps = [float(x) for _ in some for x in next(scored).logps]
            rolled.append(Rolled(tuple(logps), tuple(all_ids)))
        self._done(len(texts), begin)
        return rolled

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Generate. A prompt is cut at its start to leave room for `max_new_tokens`; without any room it is a problem.

        The text is what follows the answer's thought (data/chat/thoughts.py).
        """
        begin, tokenizer, budget = time.perf_counter(), self.encoding.tokenizer, self.thought_budget
        extra = 0 if budget is None else budget + len(budget_of(tokenizer, (), budget).close)
        asks: dict[int, Ask] = {}
        generated = []
        for number, (prompt, ids) in enumerate(zip(prompts, self.encoding.many([p.text for p in prompts]))):
            most = prompt.max_new_tokens + extra
            room, problem = self.max_length - most, ""
            if room < 1:
                thought = f" with a thought of {budget}" if extra else ""
                problem = f"max_new_tokens={prompt.max_new_tokens}{thought} of {self.max_length} leaves no room for a prompt"
            elif prompt.media and len(ids) > room:
                problem = f"the prompt has {len(ids)} tokens with its images and sound, and there is room for {room}"
            else:
                seed = prompt.seed if prompt.temperature else 0
                tokens = tuple(ids[-room:]) or (self.encoding.prefix,)
                ask = Ask(tokens, prompt.stops, most, prompt.temperature, prompt.top_p, seed, thought=budget)
                asks[number] = self._with_media(ask, prompt)
            generated.append(Generated("", False, problem=problem, cut=not problem and len(ids) > room))
        for (number, ask), answer in zip(asks.items(), self._drawn(list(asks.values())), strict=True):
            text = drawing.text_of(answer, ask, tokenizer)
            self.stats["thoughts"] += thought_length(tokenizer, answer.tokens, opens_thought(tokenizer, ask.tokens))
            answered = {"text": text, "ended": answer.ended, "tokens": tuple(answer.tokens), "prompt_tokens": ask.tokens}
            generated[number] = generated[number]._replace(**answered)
        self._done(len(prompts), begin)
        return generated

    def chat_prompt(self, messages: Sequence[dict[str, Any]], prefill: str = "", tools: Sequence[dict] | None = None) -> str:
        return self.encoding.conversation(messages, prefill, tools)

    def turn(self, generated: Generated) -> Turn:
        tokenizer, tokens = self.encoding.tokenizer, generated.tokens
        if tokenizer.is_harmony:  # the name of a call is in the header, which ends a thought
            return parse_turn(tokenizer, tokens)
        length = thought_length(tokenizer, tokens, opens_thought(tokenizer, generated.prompt_tokens))
        return parse_turn(tokenizer, tokens[length:])

    def _with_media(self, ask: Ask, prompt: Prompt) -> Ask:
        """Return the ask with the files of the prompt's media; the prompt's tokens say how many tiles they have."""
        if not prompt.media:
            return ask
        files = tuple(Kept(medium.kind, medium.read(), MAX[medium.kind]) for medium in prompt.media)
        sections = (self.model.config.vision, self.model.config.audio)
        tiles = tuple(ask.tokens.count(section.token_id) // section.tokens if section.num_layers else 0 for section in sections)
        return ask._replace(media=files, tiles=tiles)

    def _scored(self, requests: list[Request]) -> list[Scored | None]:
        """Return the scores of each request, None where it cannot be scored."""
        fitting = [likelihood.cut(request, self.max_length) or Request((), ()) for request in requests]
        return self._answered(
            "likelihoods",
            likelihood.work(self.model, requests, max_length=self.max_length, batch_tokens=self.batch_tokens),
            len(requests),
            lambda: [key(self._identity, "likelihood", {}, *request) for request in fitting],
            lambda scored: scored.logps.tobytes() + scored.greedy.tobytes(),
            lambda value, number: _scored_of(value, len(fitting[number].continuation)),
        )

    def _drawn(self, asks: list[Ask]) -> list[Answer]:
        ends = self.encoding.stop_ids
        return self._answered(
            "generations",
            self._writing(asks),
            len(asks),
            lambda: [key(self._identity, "generation", {"ask": ask.identity(), "ends": ends}, ask.tokens) for ask in asks],
            lambda answer: json.dumps(answer).encode(),
            lambda value, _: Answer(*json.loads(value)),
        )

    def _writing(self, asks: list[Ask]) -> Iterator[Work]:
        """Yield one batch that answers all asks."""
        if self._writer is None and asks:
            room = SHARE * psutil.virtual_memory().available if self._room is None else self._room
            self._writer = Writer(self.model, self.encoding, room)
            weakref.finalize(self, self._writer.close)
        if self._writer is not None:
            yield Work(list(range(len(asks))), (), functools.partial(self._writer.answers, asks))

    def _answered(
        self,
        what: str,
        works: Iterator[Work],
        total: int,
        keys: Callable[[], list[bytes]],
        pack: Callable[[Any], bytes],
        unpack: Callable[[bytes, int], Any],
    ) -> list:
        """Return answers from the cache; compute the missing ones with the model and store them as they come.

        A known answer is never replaced, so an evaluation that was killed and resumed gets the same numbers.
        """
        names = keys() if self._answers else []

        def known() -> list:
            values = self._answers.stored(names)
            try:
                return [unpack(values[name], n) if name in values else None for n, name in enumerate(names)]
            except (ValueError, TypeError):
                raise self._answers.damaged() from None

        results = from_first(known) if self._remembers else [None] * total
        with progress(what, total, unit=" requests", enabled=self._progress, leave=False) as bar:

            def keep(answers: dict[int, Any]) -> None:
                new = {n: answer for n, answer in answers.items() if results[n] is None}
                for n, answer in new.items():
                    results[n] = answer
                    self.stats["generated"] += len(answer.tokens) if isinstance(answer, Answer) else 0
                if self._answers and new:
                    self._answers.add({names[n]: pack(answer) for n, answer in new.items()})
                bar.update(len(new))

            for work in works:
                wanted = {number for number in work.numbers if results[number] is None}
                self.stats["cached"] += len(work.numbers) - len(wanted)
                bar.update(len(work.numbers) - len(wanted))
                if not wanted:
                    continue
                if (what, *work.shape) not in self._compiled:
                    bar.compiling()
                self._compiled.add((what, *work.shape))
                self.stats["tokens"] += work.tokens
                work.run(wanted, keep)
        return results

    def _done(self, requests: int, begin: float) -> None:
        self.stats["requests"] += requests
        self.stats["seconds"] += time.perf_counter() - begin


def _scored_of(value: bytes, n: int) -> Scored | None:
    """Return scores of n tokens from cached bytes; None if they hold NaN. Raises ValueError if the size does not fit."""
    if len(value) != 5 * n:
        raise ValueError
    scored = Scored(np.frombuffer(value[: 4 * n], np.float32), np.frombuffer(value[4 * n :], bool, n))
    return scored if np.isfinite(scored.logps).all() else None


def windows(ids: Sequence[int], prefix: int, max_length: int) -> list[Request]:
    """Return requests that score each token of a text once: after `prefix`, then in windows after the previous token.

    Windows share one token. The last window reaches back over tokens that were scored already, to give the model full context.
    """
    requests = []
    for begin in range(0, len(ids), max_length):
        end = min(begin + max_length, len(ids))
        context = [prefix] if begin == 0 else list(ids[end - max_length - 1 : begin])
        requests.append(Request(context, ids[begin:end]))
    return requests
