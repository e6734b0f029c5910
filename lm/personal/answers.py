"""Answer a question from passages of the store, and say which of them the answer cites.

A small model imitates two worked examples better than it follows an instruction, so they stand before the question. Passages
are the user's own text, but may hold a stranger's, such as a letter: they are only ever quoted to the model as notes.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from data.chat.messages import make_message
from lm.infer.conversation import Conversation
from lm.infer.engine.engine import Engine
from lm.infer.engine.request import Sampling
from lm.infer.engine.room import Capacity
from lm.infer.generate import Piece
from lm.model.transformer import Transformer
from lm.personal.index import Passage, words_of
from lm.personal.speaker import Speaker

SYSTEM = "Answer the question from the notes, in one short sentence."
EXAMPLES = (
    ("What does Marta bring on Sunday?", ("Marta brings plum cake on Sunday.",), "Marta brings plum cake on Sunday [1]."),
    (
        "In what year was our house built?",
        ("The car is blue.", "Our house was built in 1911."),
        "Your house was built in 1911 [2].",
    ),
)
ROOM = 1024  # positions of the cache: a question, its passages and the answer


def open_conversation(speaker: Speaker, model: Transformer, sampling: Sampling) -> Conversation:
    """Return a conversation without notes. model: of the speaker, with or without an adapter."""
    # An adapter is merged into the matrices, and 8 bits would round it away.
    packed = "bfloat16" if model.config.adapter.rank else "int8"
    engine = Engine(model, speaker.tokenizer, Capacity(rows=1, pages=ROOM // 16), packed=packed)
    return Conversation(engine, sampling, speaker.template)


def prompted(question: str, passages: Sequence[str]) -> str:
    """Return the user's message: numbered notes and the question; without passages the question alone."""
    if not passages:
        return question
    notes = "\n".join(f"[{n}] {' '.join(text.split())}" for n, text in enumerate(passages, start=1))
    return f"Notes:\n{notes}\n\nQuestion: {question}"


def ask(
    conversation: Conversation,
    question: str,
    passages: Sequence[Passage],
    tell: Callable[[str], None] = lambda line: None,
    examples: bool = True,
) -> Iterator[Piece]:
    """Yield the answer piece by piece. A question with passages stands alone; one without follows what was said before.

    examples: put two worked examples before it. A model that was trained to answer from `prompted` needs none.
    """
    if not passages:
        yield from conversation.ask(question, tell)
        return
    before = conversation.messages
    conversation.messages = [make_message("system", SYSTEM)]
    for asked, notes, answer in EXAMPLES if examples else ():
        conversation.messages += [make_message("user", prompted(asked, notes)), make_message("assistant", answer)]
    shown = len(conversation.messages)
    try:
        yield from conversation.ask(prompted(question, [passage.text for passage in passages]), tell)
    finally:
        said = conversation.messages[shown:]
        if said:
            said[0] = make_message("user", question)
        conversation.messages = [*before, *said]


def cited(answer: str, question: str, passages: Sequence[Passage]) -> list[tuple[int, Passage]]:
    """Return (number, passage) of those that an answer cites: by [n], or else by words that are not the question's."""
    numbers = {int(n) for n in re.findall(r"\[(\d{1,3})\]", answer)} & set(range(1, len(passages) + 1))
    if not numbers:
        said = words_of(answer) - words_of(question)
        shared = {n: len(said & words_of(passage.text)) for n, passage in enumerate(passages, start=1)}
        numbers = {n for n, count in shared.items() if count and count == max(shared.values())}
    return [(n, passages[n - 1]) for n in sorted(numbers)]
