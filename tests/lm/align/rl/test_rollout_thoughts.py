"""Rewards see what follows the thought; a thought that a budget closed is not learnt from where it was forced."""

import types

import pytest

from configs.align import grpo
from data.chat.template import encode_chat, end_of_turn
from data.text.sentencepiece_tokenizer import train
from lm.align.rl.rewards import parse_rewards, score_rollouts
from lm.align.rl.rollouts import RolloutSettings, roll_out
from lm.align.rl.stream import length_metrics
from lm.align.rl.tools import Surroundings, check_turns, open_tools
from lm.align.settings import check
from lm.errors import UserError
from lm.evals.engine.generate import Answer, Ask, text_of
from lm.evals.engine.model_subject import ModelSubject
from lm.evals.task import Generated
from lm.infer.engine.local import Drawn, LocalEngine
from lm.infer.engine.thought import budget_of
from tests.data.chat import harmony_examples
from tests.data.chat.test_harmony import AGAIN, FINAL, THINK, ids_of
from tests.lm.evals import tiny_models

SCRIPT = {  # what is drawn: the completion, and the reward if 6 is right
    "<think>\nThe answer: 9. No.\n</think>\n\nThe answer: 6": ("The answer: 6", 1.0),
    "<think>\nThe answer: 6\n</think>\n\nThe answer: 9": ("The answer: 9", 0.0),
    "<think>\nso the answer: 6": ("", 0.0),
    "6": ("6", 1.0),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train(["the cat sat on the mat\n"] * 9, path, vocab_size=300, sample_bytes=1 << 16, seed=0, threads=1)


def rolled(tokenizer, answers, **settings):
    """Rollouts whose only turn draws these ids, and their tasks."""
    prompt = [{"role": "user", "content": "2 * 3"}]
    ids = encode_chat(tokenizer, prompt, add_generation_prompt=True).ids
    tasks = [{"prompt": prompt, "prompt_ids": ids, "answer": "6"} for _ in answers]
    end = end_of_turn(tokenizer)

    def draw(*_):
        drawn = [[*ids, end] for ids in answers]
        return Drawn(drawn, [[-1.0] * len(row) for row in drawn], [True] * len(drawn))

    return tasks, roll_out(None, tokenizer, tasks, RolloutSettings(99, **settings), types.SimpleNamespace(draw=draw))


@pytest.mark.parametrize("settings", [{}, {"tools": open_tools(["calculator"])}], ids=["plain", "tools"])
def test_rewards_see_the_answer_only(tokenizer, settings):
    tasks, rollouts = rolled(tokenizer, [tokenizer.encode(text) for text in SCRIPT], **settings)
    assert [rollout.completion for rollout in rollouts] == [completion for completion, _ in SCRIPT.values()]
    assert score_rollouts(parse_rewards("answer"), tasks, rollouts)[0].tolist() == [reward for _, reward in SCRIPT.values()]
    thoughts = [rollout.messages[-1].get("reasoning_content") for rollout in rollouts]
    assert thoughts == ["The answer: 9. No.", "The answer: 6", "so the answer: 6", None]
    assert all(all(rollout.mask[len(task["prompt_ids"]) :]) for rollout, task in zip(rollouts, tasks))
    metrics = length_metrics(rollouts)
    counts = [len(tokenizer.encode(text.partition("</think>")[0])) for text in list(SCRIPT)[:3]]
    assert metrics["thoughts/max_length"] >= max(counts) and metrics["thoughts/cut_ratio"] == 0
    assert not [name for name in length_metrics(rollouts[3:]) if name.startswith("thoughts/")]


def test_rewards_see_the_answer_in_harmony(tmp_path):
    tokenizer = harmony_examples.tokenizer(tmp_path)
    call = ' to=functions.calculator<|channel|>commentary json<|message|>{"expression": "2*3"}'
    texts = [f"{THINK}The answer: 9{AGAIN}{FINAL}The answer: 6", f"{THINK}The answer: 6", f"{THINK}hm{AGAIN}{call}"]
    answers = [ids_of(tokenizer, text) for text in texts]
    tasks, rollouts = rolled(tokenizer, answers, tools=open_tools(["calculator"]))
    assert [rollout.completion for rollout in rollouts] == ["The answer: 6", "", ""]
    assert score_rollouts(parse_rewards("answer"), tasks, rollouts)[0].tolist() == [1.0, 0.0, 0.0]
    assert [rollout.messages[-1]["reasoning_content"] for rollout in rollouts] == ["The answer: 9", "The answer: 6", "hm"]
    assert [rollout.tool_calls for rollout in rollouts] == [0, 0, 1]
    assert rollouts[2].messages[-1]["tool_calls"][0]["function"] == {"name": "calculator", "arguments": {"expression": "2*3"}}
    subject = types.SimpleNamespace(encoding=types.SimpleNamespace(tokenizer=tokenizer))
    generated = Generated("", True, tokens=tuple(answers[2]), prompt_tokens=tuple(tasks[0]["prompt_ids"]))
    assert ModelSubject.turn(subject, generated).tool_calls == rollouts[2].messages[-1]["tool_calls"]
    ask = Ask(tuple(tasks[0]["prompt_ids"]), (" 6",), 99, 0.0, 1.0, 0)
    assert [text_of(Answer(ids, True), ask, tokenizer) for ids in answers[:2]] == ["The answer:", ""]


def test_a_rollout_in_harmony_goes_on_after_a_call(tmp_path):
    """Its tokens are those of the template, and none of the tool's answer is learnt."""
    tokenizer = harmony_examples.tokenizer(tmp_path)
    call = ' to=functions.calculator<|channel|>commentary json<|message|>{"expression": "2*3"}<|call|>'
    wrong = call.replace('"2*3"', "2*").replace("calculator", "python")
    turns = [f"{THINK}hm{AGAIN}{call}", wrong, f"{FINAL}The answer: 6<|return|>"]
    prompt = [{"role": "user", "content": "2 * 3"}]
    tools = open_tools(["calculator"])
    ids = encode_chat(tokenizer, prompt, tools=[tools[0].schema], add_generation_prompt=True).ids
    left = iter(turns)

    def draw(*_):
        drawn = ids_of(tokenizer, next(left))
        return Drawn([drawn], [[-1.0] * len(drawn)], [True])

    tasks = [{"prompt": prompt, "prompt_ids": ids}]
    (rollout,) = roll_out(
        None, tokenizer, tasks, RolloutSettings(99, tools=tools, max_turns=4), types.SimpleNamespace(draw=draw)
    )
    assert rollout.completion == "The answer: 6" and rollout.tool_calls == 2 and rollout.tool_errors == 1
    called = {"role": "assistant", "content": "", "thinking": "hm"} | {"tool_calls": rollout.messages[1]["tool_calls"]}
    told = [*prompt, called, {"role": "tool", "content": "6"}]
    expected = encode_chat(tokenizer, told, tools=[tools[0].schema], add_generation_prompt=True).ids
    assert rollout.tokens[: len(expected)] == [*expected]
    learnt = [i for i, mine in zip(rollout.tokens, rollout.mask) if mine]
    assert learnt == [i for turn in turns for i in ids_of(tokenizer, turn)]


def test_what_answers_in_harmony(tokenizer, tmp_path):
    """Tools can, but not users: the template replaces the end of an earlier answer."""
    harmony = harmony_examples.tokenizer(tmp_path)
    for each in (tokenizer, harmony):
        check_turns(each, Surroundings(open_tools(["calculator"])))
    with pytest.raises(UserError, match=r"rollout\.max_turns: .* user .*set it to 1"):
        check_turns(harmony, Surroundings(environment=lambda task: None))


def test_forced_tokens_are_not_learnt_from(tokenizer):
    begun, close = tokenizer.encode("<think>\nsat on"), budget_of(tokenizer, (), 0).close
    ((task,), (rollout,)) = rolled(tokenizer, [[*begun, *close, *tokenizer.encode("6")]], thought_budget=len(begun))
    prompt, drawn = len(task["prompt_ids"]), len(tokenizer.encode("6")) + 1
    assert rollout.mask == [False] * prompt + [True] * len(begun) + [False] * len(close) + [True] * drawn
    assert rollout.logps[prompt:] == [-1.0] * len(begun) + [0.0] * len(close) + [-1.0] * drawn
    assert rollout.thought_cut and rollout.completion == "6"
    assert rollout.thought_tokens <= len(begun) + len(close)


def test_the_engine_of_a_policy_closes_thoughts(tokenizer):
    model = tiny_models.model(vocab_size=tokenizer.vocab_size, max_positions=256)
    prompt = [{"role": "user", "content": "2 * 3"}]
    ids = [*encode_chat(tokenizer, prompt, add_generation_prompt=True).ids, *tokenizer.encode("<think>\n")]
    engine, close = LocalEngine(tokenizer), list(budget_of(tokenizer, (), 0).close)
    tasks = [{"prompt": prompt, "prompt_ids": ids}]
    settings = RolloutSettings(5 + len(close) + 4, thought_budget=5)
    for rollout in roll_out(model, tokenizer, tasks, settings, engine, each=3):
        tokens = rollout.tokens[len(ids) :]
        assert tokens[5 : 5 + len(close)] == close or tokens[-1] in tokenizer.stop_ids
    engine.close()


def test_a_budget_leaves_tokens_for_the_answer():
    config = grpo.get_config()
    config.init_from, config.data.input, config.rewards = "a", "builtin:arithmetic", "answer"
    config.rollout.thought_budget = config.rollout.max_new_tokens
    with pytest.raises(UserError, match="^rollout.thought_budget=.* below rollout.max_new_tokens"):
        check(config)
    config.rollout.thought_budget = 8
    check(config)
