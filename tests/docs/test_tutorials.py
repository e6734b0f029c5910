"""The tutorials, run as a reader runs them: one after another, in full, in one folder. Each shows what it promises."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.docs import doc_commands
from tests.docs.test_commands import TUTORIALS
from tests.verbs import runs
from tests.verbs.conftest import shared  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
CHANCE = 1 / 8  # of the quiz


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    variables = {"XLA_FLAGS": "", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    with doc_commands.opened(tmp_path_factory.mktemp("tutorials") / "clone", **variables) as made:
        yield made


@pytest.fixture(scope="module")
def folder(box) -> Path:
    return box.folder / "runs" / "tutorial"


def said_by(box, number: int) -> str:
    """Run a tutorial and return all that it prints. Its server runs on."""
    page = next(page for page in TUTORIALS if page.startswith(f"docs/tutorials/{number}-"))
    return "".join(map(box.block, doc_commands.blocks(page)))


def report(workdir: Path) -> dict:
    return json.loads((workdir / "report.json").read_text())


def validations(workdir: Path, name: str) -> list[float]:
    return [values[name] for values in runs.validation(workdir)]


def quiz(folder: Path, run: str) -> float:
    return json.loads((folder / "evals" / run / "results.json").read_text())["quiz"]["exact_match"]


def test_curate(box, folder):
    said_by(box, 1)
    counts = report(folder / "corpus")["figures"]["funnel"]["zoo"]["unknown"]
    assert {reason: documents for reason, (documents, _) in counts.items()} == {
        "kept": 401,
        "gopher_bullet_lines": 15,
        "near_duplicate_keep": 20,
    }
    kept = [row["text"] for path in (folder / "corpus" / "documents").iterdir() for row in pq.read_table(path).to_pylist()]
    assert sum("Write to <EMAIL> before you come." in text for text in kept) == 1


def test_pretrain(box, folder):
    said = said_by(box, 2)
    measured = report(folder / "base")["validation"]
    assert measured["bits_per_byte"] < 0.6 * measured["5-gram"]
    assert "The otter eats eggs." in said and "go to the grey house and bring eggs." in said


def test_instruct(box, folder):
    said = said_by(box, 3)
    before, *_, after = validations(folder / "sft", "valid_mean_token_accuracy")
    assert before < 0.5 and after > 0.9
    assert "the otter eats eggs." in said and "the panda lives in the grey house." in said


def test_preferences(box, folder):
    said = said_by(box, 4)
    assert validations(folder / "dpo", "valid_rewards/accuracies")[-1] > 0.9
    assert validations(folder / "dpo", "valid_rewards/chosen")[-1] > -1
    assert said.count("With pleasure: the ") >= 3 + 3  # the first pairs, and the answers


def test_reinforce(box, folder):
    said_by(box, 5)
    found = report(folder / "grpo")
    assert found["after"]["reward"] > found["before"]["reward"] + 0.15
    rewards = [values["reward"] for values in runs.training(folder / "grpo")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_evaluate(box, folder):
    said = said_by(box, 6)
    assert quiz(folder, "base") <= CHANCE
    assert quiz(folder, "sft") > 3 * CHANCE and quiz(folder, "grpo") > 3 * CHANCE  # by the seed 0.5 to 1
    assert re.search(r"mmlu: acc 0\.\d+", said)


def test_serve(box):
    said = said_by(box, 7)
    model, adapter = (int(re.search(rf"{name}: (\d+) of 16 answers are polite", said)[1]) for name in ("zoo", "polite"))
    assert adapter >= 13 and model <= 11
    assert 'lmcraft:request_success_total{adapter="polite"' in said


def test_export(box):
    box.close()
    assert said_by(box, 8).count("With pleasure: the otter eats eggs.") == 2


def test_feedback(box, folder):
    said = said_by(box, 9)
    assert "Success: LoRA adapter" in said and said.count("red house.") > 6
    assert quiz(folder, "moved") > 4 * CHANCE


def test_domain(box, folder):
    box.close()
    said = said_by(box, 10)
    before, after = ([values[f"valid_bits_per_byte/{name}"] for name in ("domain", "general")] for values in ends(folder))
    assert after[0] < 0.3 * before[0] and after[1] < 1.05 * before[1]
    assert "With pleasure: the otter lives in the red house." in said


def test_images(box, folder):
    said = said_by(box, 11)
    assert said.count("the white house.") >= 2  # the answer of the first held-out photograph, and the model's
    tasks = json.loads((folder / "evals" / "seeing" / "results.json").read_text())
    assert tasks["photo"]["exact_match"] > 0.8 and tasks["grey"]["exact_match"] < 0.3
    assert quiz(folder, "seeing") > 3 * CHANCE


def test_personal(box, folder):
    box.close()
    said = said_by(box, 12)
    answers = ("The tiger eats dates [1].", "The panda eats honey [1].", "The seal lives in the white house [1].")
    assert all(answer in said for answer in answers)
    assert "note      The tiger now eats dates." in said.partition("stored 6 of 6 items")[2]  # cited
    forgotten = said.partition("forgot 2 of 9 items")[2]
    assert "nothing is found" in forgotten and "adapter: 7 items" in forgotten and "tiger" not in forgotten
    assert not (folder / "keeper" / "key.json").exists()


def test_agent(box, folder):
    said = said_by(box, 13)
    found = report(folder / "agent")
    assert found["before"]["reward"] < 0.4 and found["after"]["reward"] > 0.8
    house = (folder / "places" / "otter.txt").read_text().split()[-2]
    assert f"answer: in the {house} house." in said and 'read_file({"path": "otter.txt"}): allowed' in said
    assert "guard off: 100 of 100" in said and "guard on: 0 of 100" in said


def ends(folder: Path) -> list[dict]:
    """The first and the last validation of the domain's model."""
    first, *_, last = runs.validation(folder / "vet_model")
    return [first, last]
