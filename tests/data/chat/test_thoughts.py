"""A thought and its answer are the same wherever their text is cut; by tokens it has the same end."""

import random

import pytest

from data.chat.thoughts import AFTER, Thoughts, divided, thought_length
from data.text import sentencepiece_tokenizer as ours
from tests.data.text.test_sentencepiece_tokenizer import corpus

CASES = {  # text of an answer: its thought, and what follows
    "": ("", ""),
    " plain\n text ": ("", " plain\n text "),
    "  \n": ("", "  \n"),
    "<thin": ("", "<thin"),
    "a <think>b</think> c": ("", "a <think>b</think> c"),
    "<think>\nGröße < 5\n</think>\n\nyes\n": ("Größe < 5", "yes\n"),
    "\n <think>a</think>b</think> <think>": ("a", "b</think> <think>"),
    "<think>\n\n</think>\n\n7": ("", "7"),
    "<think></think>": ("", ""),
    "<think>it is 9, so 9 </thin": ("it is 9, so 9 </thin", ""),
    "<think>the answer: 9\n  ": ("the answer: 9", ""),
    "<think>a  b\n\n </think c</think>  d e": ("a  b\n\n </think c", "d e"),
}


@pytest.mark.parametrize("text", CASES)
def test_pieces_add_up_to_the_same_thought_and_answer(text):
    assert divided(text) == CASES[text]
    draw = random.Random(0)
    for pieces in range(1, len(text) + 1):
        cuts = [0, *sorted(draw.sample(range(1, len(text)), pieces - 1)), len(text)]
        thoughts, parts = Thoughts(), ["", ""]
        for begin, end in zip(cuts, cuts[1:]):
            parts = [a + b for a, b in zip(parts, thoughts.feed(text[begin:end]))]
        assert tuple(a + b for a, b in zip(parts, thoughts.feed("", over=True))) == CASES[text]
        closed = text.lstrip().startswith("<think>") and "</think>" in text
        assert text[: thoughts.end].endswith("</think>") if closed else thoughts.end in (0, len(text))


def test_a_prompt_may_have_begun_the_thought():
    assert divided("\nso\n</think>\n\n8", begun=True) == ("so", "8")
    assert divided("so it is 8", begun=True) == ("so it is 8", "")


def test_tokens_of_a_thought_end_where_its_text_does(tmp_path):
    tokenizer = ours.train(corpus(), tmp_path / "t", vocab_size=400, sample_bytes=1 << 18, seed=0, threads=2)
    for text in CASES:
        ids = tokenizer.encode(text)
        length, whole = thought_length(tokenizer, ids), Thoughts()
        whole.feed(text)
        assert (length == 0) == (whole.end == 0)
        if whole.state == AFTER and length:
            assert "</think>" in tokenizer.decode(ids[:length]) and "</think>" not in tokenizer.decode(ids[: length - 1])
        elif length:
            assert length == len(ids)
