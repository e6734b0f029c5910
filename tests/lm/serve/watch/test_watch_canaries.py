import json
import threading

import pytest

from lm.errors import UserError
from lm.infer.engine.request import Event
from lm.serve.guardrails import Guardrails
from lm.serve.metrics import Metrics
from lm.serve.monitor import Watch
from lm.serve.settings import WatchSettings
from lm.serve.watch.canaries import Canary, Rounds, asker, problems, read_canaries
from tests.lm.evals import tiny_models
from tests.lm.serve.played_engine import PlayedEngine
from tests.lm.serve.test_serve_metrics import values

ANSWER = "The capital of France is Paris."


@pytest.mark.parametrize(
    "expect, holds",
    [
        ({"contains": ["paris", "France"]}, True),
        ({"contains": ["paris", "Rome"]}, False),
        ({"contains_any": ["Rome", "PARIS"]}, True),
        ({"contains_any": ["Rome"]}, False),
        ({"not_contains": ["rome"]}, True),
        ({"not_contains": ["PARIS"]}, False),
        ({"matches": r"^The \w+"}, True),
        ({"matches": r"^Paris"}, False),
        ({"not_matches": "Rome"}, True),
        ({"not_matches": "is"}, False),
        ({"refuses": False}, True),
        ({"refuses": True}, False),
        ({"language": "en"}, True),
        ({"language": "de"}, False),
        ({"min_words": 6, "max_words": 6}, True),
        ({"min_words": 7}, False),
        ({"max_words": 5}, False),
    ],
)
def test_properties(expect, holds):
    wrong = problems(Canary("x", (), expect), ANSWER)
    assert (not wrong) == holds and all(wrong)


def test_files_of_both_kinds(tmp_path):
    (tmp_path / "c.yaml").write_text("- {id: paris, prompt: 'Where?', expect: {contains: [Paris]}, max_new_tokens: 9}\n")
    row = {"id": "b", "messages": [{"role": "user", "content": "Hm"}], "expect": {"refuses": True}}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    [one], [other] = read_canaries(tmp_path / "c.yaml"), read_canaries(tmp_path / "c.jsonl")
    assert one == ("paris", ({"role": "user", "content": "Where?"},), {"contains": ["Paris"]}, 9)
    assert other.messages == tuple(row["messages"]) and other.max_new_tokens == 64


@pytest.mark.parametrize(
    "text, named",
    [
        ("[", "cannot be read"),
        ("[]", "no list of canaries"),
        ("- {id: a, prompt: b}", "must have id, expect"),
        ("- {id: a, prompt: b, messages: [], expect: {refuses: true}}", "either prompt or messages"),
        ("- {id: a, prompt: b, expect: {}}", "must map properties"),
        ("- {id: a, prompt: b, expect: {sings: true}}", "no property 'sings'"),
        ("- {id: a, prompt: b, expect: {contains: Paris}}", "no list of texts"),
        ("- {id: a, prompt: b, expect: {matches: '('}}", "no regular expression"),
        ("- {id: a, prompt: b, expect: {refuses: true}, max_new_tokens: 0}", "no positive number"),
        ("- {id: a, prompt: b, expect: {refuses: true}, seed: 1}", "unknown key 'seed'"),
        ("- {id: a, messages: [{role: user}], expect: {refuses: true}}", "messages with role and content"),
        ("- {id: a, prompt: b, expect: {refuses: true}}\n" * 2, "same id"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path, text, named):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        read_canaries(tmp_path / "c.yaml")
    assert named in str(raised.value)


def test_the_engine_is_asked_greedily_with_the_template(tmp_path):
    tokenizer = tiny_models.tokenizer(tmp_path)
    engine = PlayedEngine(lambda request: [*tokenizer.encode("abc 12"), request.stop_ids[0]], tokenizer)
    ask = asker(engine)
    assert ask([{"role": "user", "content": "abc"}], 9, "law") == "abc 12"
    [request] = engine.asked
    assert (request.temperature, request.adapter, request.max_new_tokens) == (0.0, "law", 9)
    assert tokenizer.decode(request.prompt).count("abc") == 1


def test_without_an_answer_nothing_is_said(tmp_path):
    def full(request):
        raise RuntimeError("the queue is full")

    class Failing(PlayedEngine):
        def _play(self, handle, tokens):
            handle.tell(Event(finish="error", error="no"))

    tokenizer = tiny_models.tokenizer(tmp_path)
    for engine in (PlayedEngine(full, tokenizer), Failing(tokenizer=tokenizer)):
        assert asker(engine)([{"role": "user", "content": "abc"}], 9, "") is None


def test_rounds_ask_the_model_and_each_adapter_and_alert_once_until_they_pass(tmp_path):
    says, reported = {"": ANSWER, "law": "Rome."}, threading.Semaphore(0)
    canary = Canary("paris", ({"role": "user", "content": "Where?"},), {"contains": ["Paris"]})
    metrics = Metrics("tiny")
    watch = Watch(WatchSettings(status_seconds=0), tmp_path, metrics, Guardrails(), checkpoint=lambda: "step 9")
    rounds = Rounds(
        [canary],
        lambda messages, most, adapter: says[adapter],
        lambda *told: (watch.canary(*told), reported.release()),
        adapters=lambda: ("law",),
        checkpoint=lambda: "step 9",
        minutes=1e6,
    )
    for _ in range(2):
        assert reported.acquire(timeout=60)
    rounds.close()
    for _ in range(2):
        watch.canary(canary, "step 9", "law", says["law"], problems(canary, says["law"]))
    watch.flush()
    [alert] = watch.snapshot()["alerts"]
    assert alert["stream"] == "canary" and "canary paris of step 9 with law failed: its answer lacks 'Paris'" in alert["text"]

    def passed(adapter):
        return values(metrics.text().decode())[
            f'lmcraft:canary_passed{{adapter="{adapter}",canary="paris",checkpoint="step 9",model_name="tiny"}}'
        ]

    assert (passed(""), passed("law")) == (1, 0)
    watch.canary(canary, "step 9", "law", ANSWER, [])
    assert watch.snapshot()["alerts"] == [] and passed("law") == 1
    watch.canary(canary, "step 9", "law", None, None)
    assert passed("law") == 1
    watch.close()
