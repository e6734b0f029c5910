"""Numbers in long texts: who reads everything finds them all, and who forgets the beginning fails by depth."""

import itertools
import re

import pytest

from data.tasks.haystack import DEPTHS, LINKS, haystack
from lm.errors import UserError
from lm.evals.task import Generated, TaskSettings
from lm.evals.tasks.catalogue import open_task


def found(prompt):
    """Return the number that the prompt asks for, from its sentences alone, or "none"."""
    said = dict(re.findall(r"The number of the ([\w -]+) is (.+?)\.(?=\s)", prompt))
    name = re.search(r"What is the number of the ([\w -]+)\?", prompt)[1]
    for _ in range(LINKS):
        if (value := said.get(name, "none")).isdecimal():
            return value
        name = value.removeprefix("the number of the ")
    return "none"


class Reader:
    """A Subject that reads the last `words` words of a prompt."""

    name = "reader"

    def __init__(self, words):
        self.words = words

    def generate(self, prompts):
        return [Generated(f" It is {found(' '.join(prompt.text.split(' ')[-self.words :]))}.") for prompt in prompts]


@pytest.mark.parametrize("part", ["needle", "keys", "chain"])
def test_who_reads_everything_finds_every_number(part):
    options = {"generation": {"data": f"builtin:haystack?part={part}&words=128,512&valid=100"}}
    task = open_task("haystack", TaskSettings(options=options))
    results, samples = task.run(Reader(10**6))
    assert results["exact_match"] == 1.0 and results["n"] == 100
    assert {*results["cells"]} == {f"{words} words at {depth} %" for words in (128, 512) for depth in DEPTHS}
    partial, _ = task.run(Reader(300))
    assert partial["cells"]["512 words at 0 %"]["exact_match"] == 0.0
    assert all(figures["exact_match"] == 1.0 for cell, figures in partial["cells"].items() if cell.startswith("128"))
    assert part == "chain" or partial["cells"]["512 words at 100 %"]["exact_match"] == 1.0


@pytest.mark.parametrize("part", ["needle", "keys", "chain"])
def test_texts_have_their_length_and_are_needed(part):
    for record in itertools.islice(haystack("train", 0, part=part, words="64,256"), 40):
        words, wanted = len(record["prompt"].split()), int(record["cell"].split()[0])
        assert wanted <= words <= wanted + 40
        assert found(record["prompt"]) == record["completion"] != record["rejected"]
        assert found(record["prompt"].replace(f"is {record['answer']}.", "is lost.")) != record["answer"]


@pytest.mark.parametrize("options", [{"part": "hay"}, {"words": "9"}, {"words": "64,x"}])
def test_wrong_options(options):
    with pytest.raises(UserError, match=f"haystack: {next(iter(options))}"):
        next(haystack("train", 0, **options))
