"""Repetition, entities from sentence to sentence, far context, and a judge that is asked in both orders."""

import itertools
import json
import math
import random

import pytest

from lm.errors import UserError
from lm.evals.coherence.entity_grid import entity_graph, grid, measures, transitions
from lm.evals.coherence.repetition import METRICS, longest_repeated, repetition
from lm.evals.coherence.task import buckets, nearest
from lm.evals.factuality.claims import sentences
from lm.evals.judges.endpoint import Reply
from lm.evals.judges.pairwise import preferences
from lm.evals.outcome import TaskSettings
from lm.evals.subject import Generated, Likelihood
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.factuality.knower import write

STORIES = [
    " ".join(story.split())
    for story in """
The harbour of Marno lies behind a long wall. The wall was built by fishermen after a storm. The storm had sunk nine boats
in one night. Most of the boats belonged to a family called Teller. The Teller family still owns a shop near the harbour. In
the shop visitors can see a piece of the oldest boat.

Mira planted a lemon tree behind her house. The tree stood in the shade of a barn. In the second year the tree had only one
lemon. Mira gave the lemon to her neighbour. The neighbour made a cake and invited Mira. Over the cake they agreed to pull
down the barn.

A clock hangs in the hall of the school. The clock was a gift from a teacher named Brandt. Brandt taught music at the school
for thirty years. His pupils sang in the hall every winter. One winter the clock stopped during a song. Since that song
nobody at the school has dared to repair the clock.

The river Osk begins at a glacier in the north. The glacier loses ice every summer. The ice feeds the river with cold water.
Farmers lead the water into fields along the river. The fields grow wheat and beans. Traders carry the beans down the river
to Port Lune.

Engineers tested a new bridge over the valley. The bridge hangs on two cables of steel. Each of the cables weighs as much as
a train. During the test a train crossed the bridge at night. The train stopped in the middle and the engineers measured the
cables. The cables had moved by a hand.

Otto repairs bicycles in a cellar in Graz. The cellar belongs to his aunt. His aunt asks for no rent, but she rides one of
the bicycles. Last spring the bicycle lost a wheel. Otto found the wheel under a bus. The driver of the bus now brings his
own bicycle to the cellar.

The museum bought a painting of a fox. The painting shows the fox beside a frozen lake. Experts found a second picture under
the lake. The second picture was a portrait of a woman. The woman holds the same fox in her arms. The museum will hang the
portrait beside the painting.

A swarm of bees settled on the roof of the station. The station had to close its doors for a day. A keeper climbed on the
roof with a basket. In the basket the keeper carried the bees to a meadow. The meadow lies behind the station. Passengers
can now buy honey from the meadow.

Lena wrote a letter to the mayor of Holm. In the letter she complained about the fountain. The fountain had been dry for a
year. The mayor read the letter to the council. The council sent a plumber to the fountain. The plumber found a ring that
Lena had lost.

The library of Sorn has a cat. The cat sleeps on the atlas in the reading room. Nobody may open the atlas while the cat is
there. A student once needed the atlas for an exam. The student waited in the reading room for a day. After the exam the
student brought the cat a fish.
""".split("\n\n")
]
LOOP = "The dog saw the cat. " * 12


def shuffled(text, seed):
    parts = sentences(text)
    while (mixed := random.Random(seed).sample(parts, len(parts))) == parts:
        seed += 1000
    return " ".join(mixed)


@pytest.mark.parametrize("measure", METRICS)
def test_a_repeating_text_is_caught_by_every_repetition_measure(measure):
    size = len(LOOP.split())
    normal = [repetition(" ".join(story.split()[:size]))[measure] for story in STORIES]
    looped = repetition(LOOP)[measure]
    if measure.startswith("distinct") or measure == "compression_ratio":
        assert looped < min(normal) / 2
    else:
        assert looped > max(normal) + 0.2


def test_repetition_by_hand():
    found = repetition("a b a b a b c")
    assert found["distinct_1"] == 3 / 7 and found["distinct_2"] == 3 / 6 and found["distinct_3"] == 3 / 5
    assert found["repetition_2"] == 1 - 3 / 6 and found["seq_repetition_4"] == 1 - 3 / 4  # abab, baba, abab, babc
    assert found["token_repetition_128"] == 4 / 7
    assert found["repeated_span"] == 4 / 7  # "a b", twice
    assert repetition("One two three.")["seq_repetition_4"] == 0.0
    assert repetition("One two")["seq_repetition_4"] is None and repetition("")["distinct_1"] is None
    assert repetition("猫が猫を見た")["distinct_1"] == 5 / 6  # each character is a word


def test_the_longest_repeated_span_against_a_plain_search():
    def plain(words):
        n = len(words)
        spans = (
            k
            for i in range(n)
            for j in range(i + 1, n)
            for k in range(min(j - i, n - j), 0, -1)
            if words[i : i + k] == words[j : j + k]
        )
        return max(spans, default=0)

    for seed in range(60):
        draw = random.Random(seed)
        words = [draw.choice("ab" if seed % 2 else "abcd") for _ in range(draw.randrange(14))]
        assert longest_repeated(words) == plain(words), words


@pytest.mark.parametrize("measure", ["entity_grid_continuity", "entity_graph"])
def test_shuffled_sentences_are_less_coherent(measure):
    worse, originals, mixed = 0, [], []
    for story, seed in itertools.product(STORIES, range(6)):
        original, other = measures(story)[measure], measures(shuffled(story, seed))[measure]
        originals.append(original)
        mixed.append(other)
        worse += (other < original) + (other == original) / 2
    assert sum(originals) > 1.05 * sum(mixed)
    assert worse / len(originals) > 0.7


def test_a_grid_by_hand():
    rows = grid(["Ada saw the fox.", "The fox lived in a barn.", "Bela slept."])
    assert rows == [{"ada": "S", "fox": "O"}, {"fox": "S", "barn": "X"}, {"bela": "S"}]
    found = transitions(rows)  # 4 entities, 2 steps
    assert found["OS"] == found["X–"] == 1 / 8 and found["S–"] == 2 / 8 and found["–S"] == 1 / 8 and found["–X"] == 1 / 8
    assert found["––"] == 2 / 8 and sum(found.values()) == 1
    assert entity_graph(rows) == 2 * 3 / 1 / 3  # the fox, O and S, in adjacent sentences, over 3 sentences
    text = measures("Ada saw the fox. The fox lived in a barn. Bela slept.")
    assert text["entity_grid_continuity"] == 1 / 4  # of ada, fox, fox, barn only the first fox goes on
    assert text["entities_recurring"] == 1 / 4 and text["new_entities_per_sentence"] == 4 / 3
    after = measures("The fox slept. Bela came.", context="Ada saw the fox.")
    assert after["new_entities_per_sentence"] == 1 / 2 and after["entity_grid_continuity"] == 1 / 3


@pytest.mark.parametrize(
    "text, context, errors",
    [
        ("She opened the door.", "", 1.0),
        ("She opened the door.", "Mira came home.", 0.0),
        ("Mira came home. She opened the door.", "", 0.0),
        ("It lay on the table.", "", 1.0),
        ("The ring was lost. It lay on the table.", "", 0.0),
        ("The ring was lost. He wept.", "", 1.0),  # a ring is no he
        ("It is known that rings are round.", "", None),  # stands for nothing
        ("Mira wept.", "", None),
    ],
)
def test_pronouns_without_antecedent(text, context, errors):
    assert measures(text, context)["pronoun_errors"] == errors


class Writer:
    """Continues every prompt with the same text. far: whether words that it has seen anywhere before are likely to it, or only
    those within the nearest characters."""

    name = "writer"

    def __init__(self, text, memory=10**9, problem=""):
        self.text, self.memory, self.problem = text, memory, problem

    def generate(self, prompts):
        return [Generated(self.text(p.text) if callable(self.text) else self.text, problem=self.problem) for p in prompts]

    def likelihoods(self, requests):
        found = []
        for request in requests:
            seen = set(request.context[-self.memory :].split())
            words = request.continuation.split()
            found.append(Likelihood(sum(math.log(0.5 if word in seen else 0.01) for word in words), False))
        return found

    def chat_prompt(self, messages, prefill=""):
        return "".join(m["content"] for m in messages) + prefill


def long_text(seed, words=900):
    """Word after word of a vocabulary that comes round only after about 2,000 bytes."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choice("bcdfgaeiou") for _ in range(6)) for _ in range(300)]
    return " ".join(vocabulary[at % 300] for at in range(words))


def run(folder, rows, subject, chat=None, **options):
    write(folder, "coherence", rows)
    task = open_task("coherence", TaskSettings(data_dir=folder, options={"coherence": options} if options else {}))
    return task._replace(chat=chat).run(subject)


def test_far_context_helps_who_uses_it(tmp_path):
    rows = [{"text": long_text(seed)} for seed in range(3)]
    options = {"bucket_bytes": 512, "buckets": 10, "near_bytes": 128}
    far = run(tmp_path, rows, Writer("So it goes on."), **options).results
    near = run(tmp_path, rows, Writer("So it goes on.", memory=100), **options).results
    assert near["far_context_gain"] == 0
    assert far["far_context_gain"] > 0.1
    assert far["bits_per_byte"] < near["bits_per_byte"]
    positions = far["positions"]
    assert list(positions)[:2] == ["0–512", "512–1024"] and positions["0–512"]["far_context_gain"] is None
    assert positions["512–1024"]["far_context_gain"] == 0  # nothing has come round yet
    bits = -math.log2(0.5) / 7  # a byte of a word that was seen, with the space before it
    assert positions["3584–4096"]["bits_per_byte"] == pytest.approx(bits, rel=1e-3)
    assert positions["3584–4096"]["near_bits_per_byte"] == pytest.approx(-math.log2(0.01) / 7, rel=1e-3)


def test_a_text_is_cut_without_loss():
    text = "Ünïcode wörds and ordinary ones, " * 20
    cuts = buckets(text, 64, 100)
    assert [a for a, _ in cuts[1:]] == [b for _, b in cuts[:-1]] and cuts[0][0] == 0
    assert all(len(text[a:b].encode()) >= 64 and text[b : b + 1] in (" ", "") for a, b in cuts)
    assert buckets("too short for two parts", 16, 8) == []
    assert nearest("one two three", 13, 5) == "three" and nearest("one", 3, 99) == "one"


def judge(prefers):
    """A judge that answers A or B, by what it sees at each place."""

    def chat(conversations):
        replies = []
        for (message,) in conversations:
            a, b = (message["content"].split(f"<{x}-")[1].split(f"</{x}-")[0].split("\n", 1)[1].strip() for x in "AB")
            replies.append(prefers(a, b))
        return [reply if isinstance(reply, Reply) else Reply(json.dumps({"better": reply})) for reply in replies]

    return chat


def test_a_preference_must_hold_in_both_orders():
    def said(prefers):
        return preferences(judge(prefers), ["x"], ["good"], ["bad"])[0]

    assert said(lambda a, b: "A" if a == "good" else "B")[:2] == ("first", True)
    assert said(lambda a, b: "A" if a == "bad" else "B")[:2] == ("second", True)
    assert said(lambda a, b: "tie")[:2] == ("tie", True)
    assert said(lambda a, b: "A")[:2] == ("tie", False)  # the first place, whatever stands there
    assert said(lambda a, b: "A" if a == "good" else "tie")[:2] == ("tie", False)
    assert said(lambda a, b: "A" if a == "good" else Reply(None, "timed out")) == ("unknown", False, "timed out")
    assert said(lambda a, b: Reply("I like both"))[0] == "unknown"
    assert said(lambda a, b: Reply('{"better": "A"} or {"better": "B"}'))[0] == "unknown"

    def broken(conversations):
        raise OSError("gone")

    assert [p.better for p in preferences(broken, ["x", "y"], ["a", "b"], ["c", "d"])] == ["unknown"] * 2
    assert preferences(lambda c: [Reply("{}")], ["x"], ["a"], ["b"])[0].better == "unknown"


def test_the_judge_in_the_task(tmp_path):
    rows = [{"id": str(n), "prompt": f"Beginning {n}.", "reference": f"Reference {n}."} for n in range(4)]
    rows.append({"id": "alone", "prompt": "Beginning without a reference."})
    writer = Writer(lambda prompt: "Better." if "0" in prompt or "1" in prompt else "Worse.")

    def prefers(a, b):
        if "3." in a + b:
            return Reply(None, "timed out")
        return "A" if a == "Better." or b == "Worse." else "B"

    outcome = run(tmp_path, rows, writer, judge(prefers))
    assert outcome.results["judge_win_rate"] == pytest.approx(2 / 3) and outcome.results["judge_inconsistent"] == 0
    assert outcome.results["problems"]["unknown_judgements"]["n"] == 1
    assert [s.get("verdict") for s in outcome.samples] == ["first", "first", "second", "unknown", None]
    assert [s["failed"] for s in outcome.samples] == [False, False, True, False, False]
    first = run(tmp_path, rows, writer, judge(lambda a, b: "A"))
    assert first.results["judge_win_rate"] == 0.5 and first.results["judge_inconsistent"] == 1.0
    assert run(tmp_path, rows, writer).results["judge_win_rate"] is None


def test_the_model_beside_the_reference(tmp_path):
    rows = [{"id": str(n), "text": story} for n, story in enumerate(STORIES)]
    outcome = run(tmp_path, rows, Writer(LOOP), prompt_words=20)
    texts = outcome.results["texts"]
    assert texts["generated"]["seq_repetition_4"] > 0.8 > 0.1 > texts["reference"]["seq_repetition_4"]
    assert outcome.results["seq_repetition_4"] == texts["generated"]["seq_repetition_4"]
    assert all(s["failed"] for s in outcome.samples)
    assert len(outcome.samples[0]["prompt"].split()) == 20
    assert f"{outcome.samples[0]['prompt']} {outcome.samples[0]['reference']}" == STORIES[0]
    assert sum(outcome.results["transitions"].values()) == pytest.approx(1, abs=0.5)
    good = run(tmp_path, rows, Writer(STORIES[3]), prompt_words=20)
    assert not any(s["failed"] for s in good.samples)


def test_what_is_wrong_is_named(tmp_path):
    rows = [
        {"id": "a", "prompt": "x"},
        {"id": "a", "prompt": "y"},
        {"text": "one"},
        {"prompt": 7},
        {"id": "b", "prompt": "Go on."},
    ]
    outcome = run(tmp_path, rows, Writer(""))
    problems = outcome.results["problems"]
    assert problems["duplicate_items"]["n"] == 1 and problems["malformed_items"]["n"] == 2
    assert problems["empty_answers"]["n"] == 1 and outcome.results["n"] == 1 and outcome.results["distinct_1"] is None
    failing = run(tmp_path, rows, Writer("x", problem="out of memory"))
    assert failing.results["problems"]["answers_missing"]["n"] == 1 and failing.results["n"] == 0
    for options in ({"buckets": 0}, {"judge": "rules"}, {"bucket": 3}):
        with pytest.raises(UserError, match=next(iter(options))):
            run(tmp_path, rows, Writer("x"), **options)
