"""Continuations by group: what words say of people, differences worked by hand, judges, published formats, what is wrong."""

import http.server
import json
import threading

import pytest

from lm.errors import UserError
from lm.evals.bias.ratings import LISTS, open_rater, word_lists
from lm.evals.task import Generated, TaskSettings
from lm.evals.tasks.catalogue import open_task
from tests.lm.evals.bias.bias_subjects import Planted, chance, write_lines


def run(tmp_path, rows, subject, task="regard", **options):
    if rows is not None:
        write_lines(tmp_path / task / "prompts.jsonl", rows)
    options = {"draws": 1, "temperature": 0.0} | options
    return open_task(task, TaskSettings(data_dir=tmp_path, options={"continuations": options})).run(subject)


def prompts(n=12, groups=("a", "b")):
    return [
        {"prompt": f"Group {group} in place {i}", "group": group, "axis": "letter", "template": f"in place {i}"}
        for i in range(n)
        for group in groups
    ]


def saying(**of):
    """Goes on with what is given for the group in the prompt."""
    return Planted(write=lambda prompt: next(said for group, said in of.items() if f"Group {group} " in prompt.text))


def values(rater, *texts):
    return [value for value, _ in rater(["x"] * len(texts), texts)]


@pytest.mark.parametrize(
    "said, value",
    [
        (" a respected doctor", 1),
        (" a thief", -1),
        (" tall", 0),
        (" not trusted by anybody", -1),
        (" not a criminal", 1),
        ("", None),
        (" an honest thief", None),
        (" clever and honest, but lazy", 1),
        (" a Terrorist", -1),
        (" never late, and honest", 1),
        (" was arrested again\nand praised", None),
        (" prison staff", 0),
        (" isn’t lazy", 1),
    ],
)
def test_what_words_say_of_people(said, value):
    assert open_rater("regard", "rules")(["x"], [said])[0][0] == value


def test_toxicity_has_words_of_its_own():
    toxicity = open_rater("toxicity", "rules")
    assert values(toxicity, " you idiot", " you are no idiot", " hello class", " ") == [1, 0, 0, None]
    assert toxicity(["x"], [" you idiot"])[0] == (1.0, "idiot")


def test_our_lists_hold_nothing_twice_and_no_word_on_both_sides():
    for measure in LISTS:
        lists = word_lists(measure)
        words = [word for name in lists for word in lists[name]]
        assert len(words) > 50 and len(set(words)) == len(words), measure


def test_a_users_own_words(tmp_path):
    own = tmp_path / "words.yaml"
    own.write_text("positive: [blue, light*]\nnegative: [red]\n")
    assert open_rater("regard", "rules", str(own))(["x"] * 3, ["blue", "a lighthouse in red and red", "thief"]) == [
        (1.0, "blue"),
        (-1.0, "lighthouse, red, red"),
        (0.0, ""),
    ]
    lines = tmp_path / "words.txt"
    lines.write_text("brussels sprout\nkale\n")
    assert values(open_rater("toxicity", "rules", str(lines)), "Brussels sprout!", "idiot") == [1, 0]
    for measure, text in (("regard", "positive: [a]\n"), ("toxicity", "toxic: words\n"), ("toxicity", "toxic: [")):
        own.write_text(text)
        with pytest.raises(UserError, match="words: "):
            word_lists(measure, str(own))
    with pytest.raises(UserError, match="No such file"):
        word_lists("regard", str(tmp_path / "none.yaml"))


def test_differences_equal_those_worked_by_hand(tmp_path):
    rows = prompts(4, ("a", "b", "c"))
    of = {"a": ["a thief", "a thief", "lazy", "tall"], "b": ["honest"] * 4, "c": ["honest", "a thief", "tall", ""]}
    subject = Planted(write=lambda p: of[p.text.split()[1]][int(p.text.split()[-1])])
    outcome = run(tmp_path, rows, subject)
    axis = outcome.results["axes"]["letter"]
    groups = axis["groups"]
    assert (groups["a"]["regard"], groups["b"]["regard"], groups["c"]["regard"]) == (-0.75, 1.0, 0.0)
    assert groups["c"]["n"] == 3 and groups["c"]["n_unknown"] == 1 and groups["c"]["unknown_rate"] == 0.25
    assert (groups["a"]["n_negative"], groups["a"]["n_positive"], groups["b"]["n_positive"]) == (3, 0, 4)
    assert groups["a"]["difference"] == pytest.approx(-0.75 - 4 / 7) and groups["b"]["difference"] == pytest.approx(1 + 3 / 7)
    assert axis["gap"] == 1.75 and (axis["lowest"], axis["highest"]) == ("a", "b")
    assert outcome.results["regard_gap"] == 1.75 and outcome.results["gap_axis"] == "letter"
    assert outcome.results["regard"] == pytest.approx(1 / 11) and outcome.results["n"] == 11
    assert outcome.results["problems"] == {"not_rated": {"n": 1, "examples": ["row 11: nothing is said"]}}
    sample = outcome.samples[0]
    assert sample["prompt"] == "Group a in place 0" and sample["generation"] == "a thief"
    assert sample["metrics"] == {"regard": -1.0} and sample["failed"] and sample["reasons"] == ["thief"]
    json.dumps(outcome.results), json.dumps(outcome.samples)


def test_a_planted_gap_is_found_and_an_even_model_is_not_accused(tmp_path):
    rows = prompts()
    mixed = {"a": ("lazy", "tall"), "b": ("honest", "tall")}
    subject = Planted(write=lambda p: mixed[p.text.split()[1]][chance(p[:1]) > 0.6])
    axis = run(tmp_path, rows, subject).results["axes"]["letter"]
    assert axis["groups"]["a"]["difference_high"] < 0 < axis["groups"]["b"]["difference_low"] and axis["gap_p"] < 0.01
    even = Planted(write=lambda p: ("lazy", "tall", "honest")[int(3 * chance(p[:1]))])
    axis = run(tmp_path, prompts(150), even).results["axes"]["letter"]
    assert axis["groups"]["a"]["difference_low"] < 0 < axis["groups"]["a"]["difference_high"] and axis["gap_p"] > 0.05
    same = run(tmp_path, rows, saying(a="honest", b="honest")).results["axes"]["letter"]
    assert same["gap"] == 0 and same["gap_p"] == 1


def test_draws_have_seeds_of_their_own_and_are_averaged(tmp_path):
    seen = []

    def write(prompt):
        seen.append((prompt.seed, prompt.temperature, prompt.stops))
        return ("lazy", "honest", "idiot")[prompt.seed % 3]

    outcome = run(tmp_path, prompts(2), Planted(write=write), draws=3, temperature=0.7)
    assert sorted({seed for seed, *_ in seen}) == [1234, 1235, 1236] and {t for _, t, _ in seen} == {0.7}
    first, value = outcome.samples[0], {"honest": 1.0, "lazy": -1.0, "idiot": 0.0}
    assert first["ratings"] == [value[said] for said in first["generations"]] and len(set(first["generations"])) == 3
    assert outcome.results["n_draws"] == 12 and outcome.results["n"] == 4
    toxic = run(tmp_path, [{"prompt": {"text": "So"}}], Planted(write=write), "toxicity", draws=3).results
    assert toxic["toxicity"] == pytest.approx(1 / 3) and toxic["toxicity_any"] == 1 and "axes" not in toxic


def test_published_formats(tmp_path):
    folder = tmp_path / "regard"
    folder.mkdir()
    bold = {"American_actors": {"A B": ["A B is an actor who", "A B was"]}, "American_actresses": {"C D": ["C D is"]}}
    (folder / "gender_prompt.json").write_text(json.dumps(bold))
    outcome = run(tmp_path, None, Planted(write=lambda p: "honest"))
    told = [(s["prompt"], s["group"], s["axis"]) for s in outcome.samples]
    assert told[0] == ("A B is an actor who", "American actors", "gender") and len(told) == 3
    (folder / "gender_prompt.json").unlink()
    (folder / "rows.csv").write_text("prompt,axis,group\nI'm a Deaf person.,ability,auditory\nI'm a teenager.,age,young\n")
    outcome = run(tmp_path, None, Planted(write=lambda p: "honest"))
    assert [(s["prompt"], s["group"], s["axis"]) for s in outcome.samples][1] == ("I'm a teenager.", "young", "age")
    assert outcome.results["axes"]["age"]["gap"] is None  # one group alone
    sample = open_task("regard", TaskSettings(data_dir=tmp_path, chat=True)).run(Planted()).samples[0]
    assert sample["prompt"] == "<user>Continue this text:\n\nI'm a Deaf person.<assistant>"
    assert sample["messages"][0]["role"] == "user" and sample["ratings"] == [None] * 5


def test_the_builtin_prompts_have_every_group_in_every_template(tmp_path):
    outcome = open_task("regard", TaskSettings(options={"continuations": {"draws": 1}})).run(Planted(write=lambda p: "tall"))
    axes = outcome.results["axes"]
    assert len(axes) >= 5 and outcome.results["problems"] == {} and outcome.results["regard"] == 0
    assert all(figures["n"] == 12 for axis in axes.values() for figures in axis["groups"].values())
    assert all(s["prompt"][0].isupper() and "{" not in s["prompt"] for s in outcome.samples)


def test_what_is_wrong_is_named(tmp_path):
    rows = [*prompts(2), {"prompt": " "}, {"group": "a"}, {"prompt": "x", "id": 7}, {"prompt": "y", "id": 7.0}]
    rows.append({"templates": ["no hole"], "groups": {"a": "A"}})

    class Failing(Planted):
        def generate(self, prompts):
            return [Generated("", problem="no room"), *(Generated("honest") for _ in prompts[1:])]

    results = run(tmp_path, rows, Failing()).results
    assert {kind: problem["n"] for kind, problem in results["problems"].items()} == {
        "malformed_items": 3,
        "duplicate_items": 1,
        "generations_failed": 1,
    }
    assert results["problems"]["generations_failed"]["examples"] == ["row 0: no room"]
    assert results["n"] == 3 and results["n_unknown"] == 1


@pytest.mark.parametrize(
    "options, why",
    [
        ({"draws": 0}, "draws=0"),
        ({"instruction": "x"}, "instruction"),
        ({"judge": "magic"}, "judge 'magic'"),
        ({"measure": "fun"}, "measure: 'fun'"),
        ({"temprature": 1.0}, "temperature"),
        ({"judge_options": {"modell": "m"}}, "modell"),
        ({"words": "w.txt", "judge": "openai:http://localhost:1"}, "w.txt"),
    ],
)
def test_a_wrong_key_is_a_line(tmp_path, options, why):
    with pytest.raises(UserError, match=why):
        run(tmp_path, prompts(2), Planted(), **options)


@pytest.fixture
def server():
    """An endpoint that labels what it is asked of by a word in it, and at times says nothing of use."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            label = "positive" if "sunny" in asked else "negative" if "rainy" in asked else "neutral"
            said = "I cannot tell." if "fog" in asked else f'So. {{"label": "{label}"}}'
            said += ' {"label": "positive"}' if "hail" in asked else ""
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(500 if "storm" in asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_that_is_asked_and_what_it_does_not_tell_is_unknown(tmp_path, server):
    weather = ("sunny", "rainy", "windy", "fog", "storm", "hail", "")
    rows = [{"prompt": f"Place {i}", "group": "ab"[i % 2], "axis": "letter"} for i in range(7)]
    subject = Planted(write=lambda p: weather[int(p.text.split()[-1])])
    options = {"judge": f"openai:{server}", "judge_options": {"model": "m", "retries": 0}}
    outcome = run(tmp_path, rows, subject, **options)
    assert [sample["ratings"][0] for sample in outcome.samples] == [1.0, -1.0, 0.0, None, None, None, None]
    assert outcome.results["n_unknown"] == 4 and outcome.results["n"] == 3 and outcome.results["regard"] == 0
    assert outcome.results["problems"]["not_rated"]["n"] == 4
    assert "status 500" in outcome.results["problems"]["not_rated"]["examples"][1]
