"""Search: by words, by vectors, in stores of any size; passages; what answers cite."""

import numpy as np
import pytest

from data.chat.messages import make_message
from lm.personal import answers
from lm.personal.index import PASSAGE, Index, Passage, passages_of
from lm.personal.items import Item, note


def texts(found: list[Passage]) -> list[str]:
    return [one.text for one in found]


def test_the_passage_with_the_rare_words_comes_first():
    notes = [note(f"the garden has a tree of kind {n}") for n in range(50)]
    index = Index([*notes, note("The ladder for the garden hangs in the attic.")])
    assert texts(index.search("Where is the ladder of the garden?", 3)) == ["The ladder for the garden hangs in the attic."]
    assert texts(index.search("ladders", 3)) == ["The ladder for the garden hangs in the attic."]  # by its stem
    assert index.search("zeppelin", 3) == []


def test_a_store_of_one_item_is_searched_too():
    assert texts(Index([note("The key is blue.")]).search("Which colour has the key?", 3)) == ["The key is blue."]
    assert Index([]).search("anything", 3) == []


def test_what_is_asked_is_no_query_language():
    index = Index([note('say "AND" OR NEAR(a b) - it*')])
    for question in ('" OR ""', "NEAR(", "a AND", "text:say", "-", "", "*"):
        index.search(question, 2)
    assert texts(index.search("AND near", 2)) == ['say "AND" OR NEAR(a b) - it*']


def test_vectors_find_what_shares_no_word():
    notes = [note(f"note {n}") for n in range(9)] + [note("Felix sleeps on the sofa.")]
    vectors = np.eye(10, dtype=np.float32)
    index = Index(notes, vectors)
    assert texts(index.search("Where is our pet?", 3, vectors[9])) == ["Felix sleeps on the sofa."]
    assert index.search("Where is our pet?", 3, np.full(10, 10**-0.5, np.float32)) == []  # like none more than others


def test_in_a_small_store_vectors_do_not_outvote_the_word_that_only_one_note_has():
    foods = {"otter": "eggs", "panda": "honey", "seal": "dates", "tiger": "dates", "zebra": "leaves", "hawk": "figs"}
    notes = [f"The {animal} now eats {food}." for animal, food in foods.items()]
    index = Index([note(text) for text in notes], np.eye(6, dtype=np.float32))
    for right, (text, animal) in enumerate(zip(notes, foods, strict=True)):
        for wrong in np.eye(6, dtype=np.float32):
            wrong = wrong - np.eye(6, dtype=np.float32)[right]  # as far as can be from the note that is right
            assert texts(index.search(f"What does the {animal} eat?", 1, wrong)) == [text]


def test_vectors_order_the_notes_where_no_word_tells_them_apart():
    notes = ["The otter now eats eggs.", "The otter now eats figs.", "The seal now eats figs."]
    index = Index([note(text) for text in notes], np.eye(3, dtype=np.float32))
    for n in (0, 1):
        assert texts(index.search("What does the otter eat?", 1, np.eye(3, dtype=np.float32)[n])) == [notes[n]]


def test_long_items_are_split_at_their_seams():
    paragraphs = [f"Paragraph {n}. " + "Words follow words here. " * 12 for n in range(6)]
    item = Item("1", "file", "a.txt", 0.0, "\n\n".join(paragraphs))
    parts = [passage.text for passage in passages_of(item)]
    assert all(0 < len(part) <= PASSAGE for part in parts)
    assert [part.split(".")[0] for part in parts if part.startswith("Paragraph")][:2] == ["Paragraph 0", "Paragraph 2"]
    assert "".join("".join(parts).split()) == "".join(item.text.split())
    assert [len(passage.text) for passage in passages_of(note("x" * 2 * PASSAGE))] == [PASSAGE, PASSAGE]


def test_an_answer_cites_by_number_or_by_its_words():
    found = [Passage(note(text), text) for text in ("The pot is blue.", "The key is in the drawer.")]
    assert [n for n, _ in answers.cited("It is in the drawer [2].", "Where is the key?", found)] == [2]
    assert [n for n, _ in answers.cited("Both [1][2], not [7].", "?", found)] == [1, 2]
    assert [n for n, _ in answers.cited("Look into the drawer.", "Where is the key?", found)] == [2]
    assert answers.cited("I do not know.", "Where is the key?", found) == []


@pytest.mark.parametrize(("examples", "turns"), [(True, 4), (False, 0)])
def test_worked_examples_stand_before_the_notes_if_they_are_wanted(examples, turns):
    conversation = Recorded()
    found = [Passage(note("The key is in the drawer."), "The key is in the drawer.")]
    assert list(answers.ask(conversation, "Where is the key?", found, examples=examples)) == []
    system, *shown = conversation.before
    assert system["content"] == answers.SYSTEM and len(shown) == turns
    assert conversation.asked == "Notes:\n[1] The key is in the drawer.\n\nQuestion: Where is the key?"
    assert conversation.messages == [{"role": "user", "content": "Where is the key?"}]  # without notes and examples


class Recorded:
    """A conversation that says nothing, and keeps what stood before a question."""

    def __init__(self):
        self.messages, self.before, self.asked = [], [], ""

    def ask(self, text, tell):
        self.before, self.asked = list(self.messages), text
        self.messages.append(make_message("user", text))
        yield from ()
