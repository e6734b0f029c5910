"""Edits make one text of the other, show what stages do, and stay right where texts are cut."""

import random

import pytest

from lm.reports.edits import Edit, applied, edits, limited

DRAW = random.Random(0)


def rewritten(text: str) -> str:
    for _ in range(DRAW.randrange(5)):
        begin = DRAW.randrange(len(text) + 1)
        text = text[:begin] + DRAW.choice(["", "<EMAIL>", "\n", "é"]) + text[begin + DRAW.randrange(40) :]
    return text


@pytest.mark.parametrize("letters", ["ab \n", "abcdefgh  \n", "x\n", "a", "é中文字 \n😀"])
def test_edits_make_the_other_text(letters):
    for length in range(200):
        before = "".join(DRAW.choice(letters) for _ in range(length))
        after = rewritten(before)
        found = edits(before, after)
        assert applied(found, before) == after
        assert not found if before == after else all(removed or added for _, removed, added in found)
        for most in (0, length // 2, length):
            some, made = limited(found, most, inclusive=most == length)
            assert len(applied(some, before[:most])) == made and sum(kept + removed for kept, removed, _ in some) <= most


def test_what_stages_do_is_seen():
    lines = [f"This is line {n}, and it ends here.\n" for n in range(40)]
    without = "".join(line for n, line in enumerate(lines) if n % 10)
    size = len(lines[11])
    removed = [Edit(0, size - 1, ""), Edit(9 * (size - 1), size, ""), Edit(9 * size, size, ""), Edit(9 * size, size, "")]
    assert edits("".join(lines), without) == removed
    masked = "Write to jane@example.org, or call."
    assert edits(masked, masked.replace("jane@example.org", "<EMAIL>")) == [Edit(9, 16, "<EMAIL>")]
    chinese = "这是一个很长的句子没有空格电话号码"
    assert edits(chinese, chinese.replace("句子", "〈〉")) == [Edit(7, 2, "〈〉")]
    assert edits("wholly other words\n", "nothing alike 12345") == [Edit(0, 19, "nothing alike 12345")]


def test_lines_that_are_left_out_and_stripped():
    before = "Menu\n  a line\n\n  Menu\n\tanother line\nMenu\n"
    assert edits(before, "a line\nanother line") == [Edit(0, 7, ""), Edit(7, 9, ""), Edit(12, 6, "")]
    for _ in range(300):
        lines = [DRAW.choice(["", " ", "\t", "  "]) + DRAW.choice("aab\u2003") + DRAW.choice(["\n", " \n"]) for _ in range(30)]
        after = "\n".join(line.strip() for line in lines if DRAW.random() < 0.7)
        assert applied(edits("".join(lines), after), "".join(lines)) == after


def test_a_cut_end_is_no_edit():
    lines = [f"line {n}\n" for n in range(100)]
    before, after = "".join(lines), "".join(lines[:5] + lines[7:])
    found = edits(before[:300], after[:300], whole=False)
    assert [(edit.removed, edit.added) for edit in found if edit.added] == []
    assert found[0] == Edit(sum(map(len, lines[:5])), sum(map(len, lines[5:7])), "")


def test_texts_of_one_item():
    before = "a." * 6000
    for after in (before[:5000] + "b" + before[5001:], before[::2], "- x\n" * 3000):
        assert applied(edits(before, after), before) == after
