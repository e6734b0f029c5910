"""What a step's logits mean for a sequence: log-probabilities of its prompt, or its next tokens."""

from lm.infer.engine.draw import Drawn
from lm.infer.engine.request import NOT_FINITE, Event, Likely
from lm.infer.engine.schedule import Part
from lm.infer.engine.sequence import Sequence


def advance(part: Part, found: Drawn | None, here: slice) -> Event | None:
    """Move the part's sequence on, and return its new tokens; None if only a piece of the prompt was read.

    here: where what was drawn for the part is in `found`. Drafts are checked one by one: what was drawn after a draft counts
    only if the same token was drawn in its place. So drafts change no token: each is drawn from the model's own distribution,
    with the random number of its place.
    """
    sequence, r = part.sequence, part.sequence.request
    if found is not None and found.lost_S[here].any():
        return Event(finish="error", error=NOT_FINITE)
    if part.begin + len(part.tokens) - part.drafts < len(sequence.tokens):
        sequence.computed = part.begin + len(part.tokens)
        _read(sequence, found, here)
        return None
    assert found is not None  # the next token is drawn
    drafts = part.tokens[len(part.tokens) - part.drafts :]
    begin = here.stop - part.drafts - 1
    _read(sequence, found, slice(here.start, begin))
    prompt = (None, *sequence.read) if r.prompt_logprobs >= 0 and not sequence.sampled else ()
    tokens, likely, finish = [], [], ""
    for n, s in enumerate(range(begin, here.stop)):
        tokens.append(int(found.token_S[s]))
        if r.logprobs >= 0:
            likely.append(_likely(found, s, r.logprobs))
        sequence.computed = len(sequence.tokens)
        finish = sequence.append(tokens[-1])
        if finish or (n < len(drafts) and drafts[n] != tokens[-1]):
            break
    return Event(tuple(tokens), tuple(likely), prompt, finish)


def _read(sequence: Sequence, found: Drawn | None, here: slice) -> None:
    """Keep the log-probabilities of prompt tokens that were read."""
    if found is not None and sequence.request.prompt_logprobs >= 0 and not sequence.sampled:
        sequence.read += [_likely(found, s, sequence.request.prompt_logprobs) for s in range(here.start, here.stop)]


def _likely(found: Drawn, s: int, top: int) -> Likely:
    alternatives: tuple[tuple[int, float], ...] = ()
    if top and found.top is not None:
        alternatives = tuple((int(id), float(p)) for p, id in zip(found.top[0][s, :top], found.top[1][s, :top]))
    return Likely(float(found.logp_S[s]), alternatives)
