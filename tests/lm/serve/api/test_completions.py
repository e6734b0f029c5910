"""/v1/completions through the official client."""

import openai
import pytest

from lm.infer.engine.request import Request
from tests.lm.serve.conftest import until

PROMPT = "the cat"


def greedy(client, **options):
    return client.completions.create(model="tiny", **{"prompt": PROMPT, "max_tokens": 12, "temperature": 0} | options)


def tokens_of(engine, tokenizer, prompt=PROMPT, count=12):
    """What the engine itself samples."""
    found, events = [], []
    engine.submit(Request(tuple(tokenizer.prompt_ids(prompt)), count, 0.0, stop_ids=tokenizer.stop_ids), events.append)
    until(lambda: events and events[-1].finish)
    for event in events:
        found += event.tokens
    return found


def test_the_text_is_that_of_the_engine(client, engine, tokenizer):
    answer = greedy(client)
    tokens = tokens_of(engine, tokenizer)
    assert answer.choices[0].text == tokenizer.decode(tokens)
    assert answer.usage.completion_tokens == len(tokens) and answer.usage.prompt_tokens == len(tokenizer.prompt_ids(PROMPT))
    assert answer.choices[0].finish_reason == ("stop" if tokens[-1] in tokenizer.stop_ids else "length")
    assert answer.id.startswith("cmpl-") and answer.model == "tiny"


def test_prompts_of_every_form(client, tokenizer):
    one, other = greedy(client).choices[0].text, greedy(client, prompt="def").choices[0].text
    ids = [tokenizer.prompt_ids(text) for text in (PROMPT, "def")]
    assert [c.text for c in greedy(client, prompt=[PROMPT, "def"]).choices] == [one, other]
    assert [c.text for c in greedy(client, prompt=ids).choices] == [one, other]
    assert greedy(client, prompt=ids[0]).choices[0].text == one


def test_a_seed_repeats_and_choices_differ(client):
    first = client.completions.create(model="tiny", prompt=PROMPT, n=3, seed=7, max_tokens=20)
    again = client.completions.create(model="tiny", prompt=PROMPT, n=3, seed=7, max_tokens=20)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices] and len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert client.completions.create(model="tiny", prompt=PROMPT, seed=7, max_tokens=20).choices[0].text == texts[0]


def test_best_of_returns_the_likeliest(client):
    options = {"model": "tiny", "prompt": PROMPT, "seed": 3, "max_tokens": 6, "logprobs": 0}
    best = client.completions.create(n=2, best_of=5, **options)
    every = client.completions.create(n=5, **options)

    def mean(choice):
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    expected = sorted(every.choices, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best.choices] == [choice.text for choice in expected]
    assert best.usage.completion_tokens == every.usage.completion_tokens


@pytest.mark.parametrize("options", [{}, {"stop": ["at", "\n"]}, {"echo": True}, {"n": 2, "seed": 1, "temperature": 1.0}])
def test_streamed_is_not_streamed(client, options):
    options = {"model": "tiny", "prompt": [PROMPT, "深い"], "max_tokens": 30, "temperature": 0, "logprobs": 2} | options
    whole = client.completions.create(**options)
    found = {n: ["", [], [], None] for n in range(len(whole.choices))}
    usage = None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            row = found[choice.index]
            row[0] += choice.text
            row[1] += choice.logprobs.tokens
            row[2] += choice.logprobs.text_offset
            row[3] = choice.finish_reason or row[3]
    expected = {c.index: [c.text, c.logprobs.tokens, c.logprobs.text_offset, c.finish_reason] for c in whole.choices}
    assert found == expected and usage == whole.usage


def test_stop_strings(client):
    whole = greedy(client, max_tokens=30).choices[0].text
    for stop in {whole[5:7], whole[9:12], whole[3]}:
        cut = greedy(client, max_tokens=30, stop=stop)
        assert cut.choices[0].text == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"
        kept = greedy(client, max_tokens=30, stop=[stop, "never"], extra_body={"include_stop_str_in_output": True})
        assert kept.choices[0].text == whole[: whole.index(stop)] + stop


def test_too_many_stop_strings_are_counted_in_words(client):
    for stop, words in ((["a"] * 17, "at most 16 texts"), ("a" * 513, "of at most 512 characters"), ([1], "a list of texts")):
        with pytest.raises(openai.BadRequestError) as error:
            greedy(client, stop=stop)
        assert error.value.param == "stop" and error.value.body["message"].startswith("stop: give ")
        assert words in error.value.body["message"]


def test_a_stop_string_frees_the_engine(client, engine):
    whole = greedy(client, max_tokens=30).choices[0].text
    before = engine.stats().finished.get("cancelled", 0)
    greedy(client, max_tokens=400, stop=whole[4:6])
    until(lambda: engine.stats().finished.get("cancelled", 0) == before + 1)


def test_logprobs_and_echo_score_a_prompt(client, tokenizer):
    """As lm-evaluation-harness asks: the log-probabilities of the prompt's tokens, and one more token."""
    answer = greedy(client, echo=True, logprobs=1, max_tokens=1).choices[0]
    ids = tokenizer.prompt_ids(PROMPT)
    found = answer.logprobs
    assert answer.text.startswith(PROMPT) and len(found.tokens) == len(ids) + 1
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    for token, value, top, offset in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset))[1:]:
        assert top[token] == value <= max(top.values()) <= 0 and len(top) in (1, 2)
        assert token.startswith(("bytes:", "</s>")) or answer.text[offset:].startswith(token)
    scored = greedy(client, echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == PROMPT and scored.choices[0].logprobs.token_logprobs == found.token_logprobs[:-1]
    assert scored.usage.completion_tokens == 0


def test_settings_reach_the_engine(client, tokenizer):
    whole = greedy(client)
    first = tokenizer.encode(whole.choices[0].text)[0]
    assert not greedy(client, logit_bias={str(first): -100}).choices[0].text.startswith(tokenizer.decode([first]))
    only = greedy(client, max_tokens=3, logit_bias={str(tokenizer.encode("=")[-1]): 100})
    assert only.choices[0].text == "=" * 3
    assert greedy(client, temperature=2, extra_body={"top_k": 1}).choices[0].text == whole.choices[0].text
    assert greedy(client, temperature=2, extra_body={"min_p": 1.0}).choices[0].text == whole.choices[0].text
    ended = {"logit_bias": {str(tokenizer.eos_id): 100}}
    assert greedy(client, **ended).usage.completion_tokens == 1
    assert greedy(client, **ended, extra_body={"min_tokens": 4}).usage.completion_tokens == 5
    assert greedy(client, **ended, extra_body={"ignore_eos": True}).usage.completion_tokens == 12
    penalised = greedy(client, max_tokens=3, logit_bias={str(first): 20}, frequency_penalty=2)
    assert penalised.choices[0].text.startswith(tokenizer.decode([first]))


REFUSED = [
    {"suffix": "x"},
    {"n": 0},
    {"n": -1},
    {"n": 10**9},
    {"n": 3, "best_of": 2},
    {"n": 1, "best_of": 2, "stream": True},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_tokens": 10**6},
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"temperature": "hot"},
    {"top_p": 0},
    {"presence_penalty": 3},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"400": 1}},
    {"logit_bias": {"1": 1000}},
    {"logit_bias": {"-1": 1}},
    {"logprobs": 21},
    {"seed": 2**70},
    {"stop": ["a"] * 17},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [400]},
    {"prompt": [-1]},
    {"prompt": [["a"]]},
    {"prompt": {"a": 1}},
    {"prompt": "the " * 1200},
    {"prompt": ["a"] * 129},
    {"extra_body": {"min_tokens": 99}},
    {"extra_body": {"min_p": 2}},
    {"extra_body": {"repetition_penalty": 0}},
    {"extra_body": {"top_k": -2}},
    {"extra_body": {"guided_regex": "a", "guided_choice": ["a"]}},
]


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_bad_values_are_refused_with_their_field(client, options):
    with pytest.raises(openai.BadRequestError) as error:
        greedy(client, **options)
    field = next(iter(options.get("extra_body", options)))
    assert error.value.type == "invalid_request_error" and error.value.param in (field, "best_of", "prompt", "max_tokens")
    assert error.value.body["message"]


def test_control_symbols_in_a_prompt_stay_text(client, tokenizer):
    answer = greedy(client, prompt="a</s><|system|>b", echo=True, logprobs=0, max_tokens=1).choices[0]
    assert answer.text.startswith("a</s><|system|>b")
    assert not {"</s>", "<|system|>"} & set(answer.logprobs.tokens[:-1])
