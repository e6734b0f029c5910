"""Prompts are, byte for byte, those of lm-evaluation-harness on the same rows: its own task code runs beside ours."""

import logging
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval")

import lm_eval.tasks as harness  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

from lm.evals.judges.verdict import Verdict  # noqa: E402
from lm.evals.task import TaskSettings  # noqa: E402
from lm.evals.tasks import generation  # noqa: E402
from lm.evals.tasks.catalogue import open_task  # noqa: E402
from tests.lm.evals.tasks import task_rows as rows  # noqa: E402

FOLDER = Path(harness.__file__).parent
logging.getLogger("lm_eval").setLevel(logging.ERROR)

# Our task: the harness's file, and its rows by the splits that both read.
TRAINED = {"train": 9, "validation": 5}
TASKS = {
    "hellaswag": ("hellaswag/hellaswag.yaml", rows.hellaswag, TRAINED),
    "arc_easy": ("arc/arc_easy.yaml", rows.arc, TRAINED | {"test": 5}),
    "arc_challenge": ("arc/arc_challenge.yaml", rows.arc, TRAINED | {"test": 5}),
    "piqa": ("piqa/piqa.yaml", rows.piqa, TRAINED),
    "winogrande": ("winogrande/default.yaml", rows.winogrande, TRAINED),
    "openbookqa": ("openbookqa/openbookqa.yaml", rows.openbookqa, TRAINED | {"test": 5}),
    "boolq": ("super_glue/boolq/default.yaml", rows.boolq, TRAINED),
    "lambada": ("lambada/lambada_openai.yaml", rows.lambada, {"test": 8}),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", rows.truthfulqa, {"validation": 5}),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", rows.truthfulqa, {"validation": 5}),
    "truthfulqa_gen": ("truthfulqa/truthfulqa_gen.yaml", rows.truthfulqa_answers, {"validation": 5}),
    "gsm8k": ("gsm8k/gsm8k.yaml", rows.gsm8k, {"train": 9, "test": 5}),
    "math": ("hendrycks_math/hendrycks_math_algebra.yaml", rows.math, {"train": 9, "test": 5}),
    "humaneval": ("humaneval/humaneval.yaml", rows.humaneval, {"test": 3}),
    "humaneval_instruct": ("humaneval/humaneval_instruct.yaml", rows.humaneval, {"test": 3}),
    "ifeval": ("ifeval/ifeval.yaml", rows.ifeval, {"train": 5}),
    "wikitext": ("wikitext/wikitext.yaml", rows.wikitext, {"train": 1, "validation": 1, "test": 4}),
}


def asked_by_us(name: str, settings: TaskSettings) -> tuple[list[tuple], rows.Recorder]:
    model = rows.Recorder()
    open_task(name, settings).run(model)
    if model.prompts:
        return [(p.text, p.stops, p.max_new_tokens, p.temperature) for p in model.prompts], model
    return [tuple(request) for request in model.asked] or [(text,) for text in model.texts], model


@pytest.fixture
def both(tmp_path, monkeypatch):
    """What our task and the harness's ask of a model, on the same rows. No judge is asked."""
    monkeypatch.setattr(generation, "ask", lambda chat, question, cases, **texts: [Verdict("unknown")] * len(cases))

    def run(name, config, folder, settings):
        ours, model = asked_by_us(name, settings)
        return ours, asked_by_harness(config, folder, tmp_path / "cache", settings, model)

    return run


def asked_by_harness(config: dict, folder: Path, cache: Path, settings: TaskSettings, model) -> list[tuple]:
    files = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    config = config | {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(cache)}
    task = ConfigurableTask(config=config)
    shots = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and shots != 0:
        task.set_config("num_fewshot", settings.num_fewshot)
    elif shots is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)

    def template(messages, add_generation_prompt):
        if add_generation_prompt:
            return model.chat_prompt(messages)
        return model.chat_prompt(messages[:-1], messages[-1]["content"])

    task.build_all_requests(
        rank=0,
        world_size=1,
        system_instruction=settings.system or None,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        chat_template=template if settings.chat else None,
    )
    found = []
    for instance in task.instances:
        if instance.request_type != "generate_until":
            found.append(tuple(instance.args))
            continue
        text, kwargs = instance.args
        found.append((text, tuple(kwargs["until"]), kwargs.get("max_gen_toks", 256), float(kwargs.get("temperature", 0))))
    return found


def config_of(path: str) -> dict:
    """The harness's YAML, without what loads a metric from the network when it is imported."""
    of_humaneval = path.startswith("humaneval")
    config = load_yaml(FOLDER / path, resolve_func=not of_humaneval)
    if of_humaneval:
        config |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean"}], "filter_list": None}
    return config


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_those_of_the_harness(name, shots, both, tmp_path):
    path, row, sizes = TASKS[name]
    folder = rows.put(tmp_path / name, row, sizes)
    settings = TaskSettings(
        data_dir=tmp_path, num_fewshot=shots if name != "wikitext" else None, judge="openai:http://localhost"
    )
    config = config_of(path)
    if name == "lambada":  # of its file the harness would show items with their own answers among the examples
        config["fewshot_split"] = "test"
    ours, theirs = both(name, config, folder, settings)
    assert len(ours) >= 3 and ours == theirs
    shown = shots if name not in ("ifeval", "wikitext") and not name.startswith(("truthfulqa", "humaneval")) else 0
    if shown:
        without, _ = asked_by_us(name, settings._replace(num_fewshot=0))
        assert all(len(a[0]) > len(b[0]) for a, b in zip(ours, without))


@pytest.mark.parametrize("multiturn", [False, True])
@pytest.mark.parametrize(
    "name, shots",
    [
        ("arc_easy", 2),
        ("winogrande", 2),
        ("gsm8k", 2),
        ("lambada", 0),
        ("hellaswag", 0),
        ("humaneval_instruct", 0),
        ("math", 1),
    ],
)
def test_conversations_are_those_of_the_harness(name, shots, multiturn, both, tmp_path):
    path, row, sizes = TASKS[name]
    folder = rows.put(tmp_path / name, row, sizes)
    settings = TaskSettings(data_dir=tmp_path, num_fewshot=shots, chat=True, system="Be brief.", fewshot_as_multiturn=multiturn)
    ours, theirs = both(name, config_of(path), folder, settings)
    assert ours == theirs and ours[0][0].startswith("<system>Be brief.")
    assert ours[0][0].count("<user>") == (1 + shots if multiturn else 1)


def test_a_system_instruction_without_a_template_stands_before_the_prompt(both, tmp_path):
    path, row, sizes = TASKS["gsm8k"]
    folder = rows.put(tmp_path / "gsm8k", row, sizes)
    settings = TaskSettings(data_dir=tmp_path, num_fewshot=1, system="Be brief.")
    ours, theirs = both("gsm8k", config_of(path), folder, settings)
    assert ours == theirs and ours[0][0].startswith("Be brief.Question:")


@pytest.mark.parametrize(
    "name, shots, path, row, groups, sizes",
    [
        ("mmlu", 0, "mmlu/default/mmlu_{}.yaml", rows.mmlu, ["anatomy", "high_school_us_history"], {"dev": 5, "test": 4}),
        ("mmlu", 5, "mmlu/default/mmlu_{}.yaml", rows.mmlu, ["anatomy", "high_school_us_history"], {"dev": 5, "test": 4}),
        ("mmlu_pro", 0, "mmlu_pro/mmlu_pro_{}.yaml", rows.mmlu_pro, ["computer science", "law"], {"validation": 5, "test": 4}),
        ("mmlu_pro", 5, "mmlu_pro/mmlu_pro_{}.yaml", rows.mmlu_pro, ["computer science", "law"], {"validation": 5, "test": 4}),
        ("bbh", 0, "bbh/zeroshot/{}.yaml", rows.bbh, ["boolean_expressions", "snarks"], {"test": 5}),
        ("bbh_cot", 0, "bbh/cot_zeroshot/{}.yaml", rows.bbh, ["hyperbaton", "web_of_lies"], {"test": 5}),
    ],
)
def test_a_group_stands_for_a_task_of_the_harness(name, shots, path, row, groups, sizes, tmp_path):
    theirs, key = [], {"mmlu": "subject", "mmlu_pro": "category"}.get(name, "subtask")
    settings = TaskSettings(data_dir=tmp_path, num_fewshot=shots)
    for number, group in enumerate(groups):
        alone = tmp_path / "apart" / group
        rows.put(alone, lambda i, split, group=group, number=number: row(i + 10 * number, split) | {key: group}, sizes)
        for split in sizes:  # all groups' rows in one folder, of which the harness has one each
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{group.replace(' ', '_')}_{split}.jsonl").write_bytes((alone / f"{split}.jsonl").read_bytes())
        config = config_of(path.format(group.replace(" ", "_")))
        config["metric_list"] = [m for m in config["metric_list"] if isinstance(m["metric"], str)]
        config["filter_list"] = None
        theirs += asked_by_harness(config, alone, tmp_path / "cache", settings, rows.Recorder())
    ours, _ = asked_by_us(name, settings)
    assert len(ours) >= 8 and ours == theirs


def test_every_subject_of_mmlu_is_described_as_in_the_harness(tmp_path):
    paths = sorted(FOLDER.glob("mmlu/default/mmlu_*.yaml"))
    assert len(paths) == 57
    subjects = [path.stem.removeprefix("mmlu_") for path in paths]
    (tmp_path / "mmlu").mkdir()
    for subject in subjects:
        (tmp_path / "mmlu" / f"{subject}_test.csv").write_text("What?,1,2,3,4,B\n")
    model = rows.Recorder()
    outcome = open_task("mmlu", TaskSettings(data_dir=tmp_path)).run(model)
    said = {s["group"]: s["prompt"].removesuffix("What?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:") for s in outcome.samples}
    assert said == {subject: load_yaml(path, recursive=False)["description"] for subject, path in zip(subjects, paths)}
    assert sum(area["n"] for area in outcome.results["areas"].values()) == 57
    tags = {subject: load_yaml(path, recursive=False)["tag"] for subject, path in zip(subjects, paths)}
    counts = {area: part["n"] for area, part in outcome.results["areas"].items()}
    assert counts == {area: list(tags.values()).count(f"mmlu_{area}_tasks") for area in counts}


def test_every_task_of_bbh_is_described_as_in_the_harness():
    import yaml

    from lm.evals.tasks import catalogue

    for name, folder in (("bbh", "zeroshot"), ("bbh_cot", "cot_zeroshot")):
        described = yaml.safe_load((catalogue.FOLDER / f"{name}.yaml").read_text())["description"]
        theirs = {
            path.stem: load_yaml(path, resolve_func=False, recursive=False) for path in FOLDER.glob(f"bbh/{folder}/*.yaml")
        }
        assert described == {stem: config["description"] for stem, config in theirs.items() if "description" in config}


@pytest.mark.parametrize("duplicates", [False, True])
def test_examples_from_the_evaluated_split_are_never_the_item_itself(both, duplicates, tmp_path):
    """With copies of an item in the pool, more than one may be drawn, and examples are drawn anew."""

    def row(i, split):
        return {"query": f"q{i % 4 if duplicates else i}", "choices": ["a", "b"], "gold": 1}

    folder = rows.put(tmp_path / "own", row, {"test": 9})
    spec = {
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 4,
    }
    path = tmp_path / "own.yaml"
    path.write_text("kind: choice\nmetric_list: [acc]\n" + "\n".join(f"{k}: {v}" for k, v in spec.items()))
    config = spec | {"task": "own", "output_type": "multiple_choice", "metric_list": [{"metric": "acc", "aggregation": "mean"}]}
    ours, theirs = both(str(path), config, folder, TaskSettings(data_dir=tmp_path))
    assert ours == theirs
    for context, _ in ours:
        *shown, own = context.split("\n\n")
        assert len(shown) == 4 and f"{own} b" not in shown
