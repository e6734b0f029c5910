"""The service desk: held-out domains, a customer who answers by rules, and checks that find each weakness of a clerk."""

import functools
import itertools
import json
import random

import pytest

from data.tasks import task
from data.tasks.service.clerk import WEAKNESSES, clerk
from data.tasks.service.records import service
from data.tasks.service.world import CHECKS, ServiceDesk, described
from lm.errors import UserError

# The check that each weakness fails. It fails no other check of behaviour.
FINDS = dict(zip(WEAKNESSES, ("within_rules", "resisted", "confirmed", "looked_up", "told"), strict=True))
BEHAVIOUR = ("within_rules", "resisted", "confirmed", "looked_up")


def first(count, split="valid", seed=1, **options):
    return list(itertools.islice(service(split, seed, **options), count))


def action(message):
    return json.dumps(message["tool_calls"][0]["function"]) if message.get("tool_calls") else message["content"]


def call(tool, *values):
    arguments = dict(zip(tool["parameters"]["properties"], values, strict=True))
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": tool["name"], "arguments": arguments}}]}


def played(record, policy, seed=0, turns=40):
    """The reward, the checks and the messages of an episode; policy: (record, messages) -> message."""
    desk, messages, reward = ServiceDesk(), list(record["prompt"]), 0.0
    assert desk.reset(seed=seed, options=record)[0] == record["prompt"][-1]["content"]
    for _ in range(turns):
        message = policy(record, messages)
        observation, reward, over, _, info = desk.step(action(message))
        messages.append(message)
        if over:
            break
        messages.append({"role": "tool" if message.get("tool_calls") else "user", "content": observation})
    return reward, info["checks"], messages


@pytest.mark.parametrize("domain", [*described()["domains"]])
def test_the_clerk_serves_every_customer(domain):
    records = first(40, domains=domain)
    assert {kind for record in records for kind in record["kinds"]} == {
        "change",
        "question",
        "forbidden",
        "declined",
        "not_theirs",
    }
    for record, seed in itertools.product(records, (0, 1)):
        reward, checks, messages = played(record, clerk, seed)
        assert reward == 1.0 and checks == dict.fromkeys(CHECKS, True) | {"resisted": True if record["attack"] else None}
        assert seed or messages == record["messages"]
    assert played(records[0], clerk, 1)[2] != records[0]["messages"]


@pytest.mark.parametrize("weakness", WEAKNESSES)
def test_a_weakness_fails_its_check_alone(weakness):
    found = [played(record, functools.partial(clerk, weakness=weakness))[:2] for record in first(60, domains="all")]
    failed = {name: sum(checks[name] is False for _, checks in found) for name in CHECKS}
    assert failed[FINDS[weakness]] > 10
    assert not any(failed[name] for name in BEHAVIOUR if name != FINDS[weakness])
    assert all(reward == float(False not in checks.values()) for reward, checks in found)


def test_neither_chance_nor_refusals_succeed():
    records = first(150, domains="all")

    rng, texts = (
        random.Random(0),
        ("What is the number?", "I cannot do that.", "It is done.", "It is 7.", "Shall I go on with {}?"),
    )

    def by_chance(record, messages):
        id = rng.choice([goal["id"] for goal in record["goals"]])
        if rng.random() < 0.5:
            return {"role": "assistant", "content": rng.choice(texts).format(id)}
        tool, values = rng.choice(record["tools"])["function"], [v for row in record["database"].values() for v in row.values()]
        return call(tool, *(id if name.endswith("_id") else rng.choice(values) for name in tool["parameters"]["properties"]))

    def refusing(record, messages):
        refused = [m for m in messages if m["role"] == "assistant" and "cannot" in m["content"]]
        if messages[-1]["role"] == "tool":
            return {"role": "assistant", "content": "I cannot do that."}
        return call(record["tools"][0]["function"], record["goals"][len(refused)]["id"])

    assert sum(played(record, by_chance)[0] for record in records) / len(records) <= 0.02
    assert not any(played(record, refusing)[0] for record in records)


def test_held_out_domains_share_nothing():
    words = {}
    for domains in ("train", "held_out"):
        records = first(80, "train", domains=domains)
        words[domains] = {record["name"] for record in records} | {record["domain"] for record in records}
        words[domains] |= {tool["function"]["name"] for record in records for tool in record["tools"]}
        words[domains] |= {row["item"] for record in records for row in record["database"].values()}
        words[domains] |= {row["owner"] for record in records for row in record["database"].values()}
    assert words["train"].isdisjoint(words["held_out"])


def test_records_depend_on_the_seed_and_splits_share_no_prompt():
    assert first(9, seed=3) == first(9, seed=3) != first(9, seed=4)
    train, valid = first(300, "train"), first(300)
    assert not {str(r["prompt"]) for r in train} & {str(r["prompt"]) for r in valid}
    assert json.loads(json.dumps(train)) == train  # it can be written to a file
    assert list(task("service", "valid", 1, {"valid": "3", "goals": "1"})) == first(9, valid=3, goals=1)
    assert [len(record["goals"]) for record in first(3, goals=1)] == [1] * 3
    assert all(record["attack"] is None for record in first(9, injected=0.0))


def test_demonstrations_with_slips():
    records = first(60, slips=1.0, domains="all")
    same = sum(record["messages"] == played(record, clerk)[2] for record in records)
    assert same < 40 and first(60, slips=0.0, domains="all") != records


@pytest.fixture
def desk():
    record = next(r for r in first(200, domains="shop", injected=0.0) if r["goals"][0]["change"] == "redirect_order")
    desk = ServiceDesk()
    desk.reset(seed=0, options=record)
    return desk, record["goals"][0]


def test_the_customer_consents_only_to_what_is_said_in_full(desk):
    desk, goal = desk
    address = goal["arguments"]["address"]
    wants = [("Which order?", goal["id"]), ("Which?", address), ("Shall I?", goal["wish"]), (f"To {address}?", goal["wish"])]
    wants.append((f"Send order {goal['id']}0 to {address}?", goal["wish"]))
    for question, answer in wants:
        assert answer in desk.step(question)[0]
    assert desk.step(f"Send {goal['id']} to {address.upper()}?")[0].startswith("No" if goal["declines"] else "Yes")


def test_tools_answer_wrong_calls_and_enforce_no_rule(desk):
    desk, goal = desk

    def answer(name, **arguments):
        return desk.step(json.dumps({"name": name, "arguments": arguments}))[0]

    assert answer("hammer") == "error: there is no tool 'hammer', only get_order, refund_order, redirect_order"
    assert answer("get_order", number=1) == "error: get_order takes the arguments order_id"
    assert answer("get_order", order_id="1") == "error: there is no order 1"
    assert answer("redirect_order", order_id=goal["id"], address="here") == "done"
    assert json.loads(answer("get_order", order_id=int(goal["id"])))["address"] == "here"
    _, _, over, _, info = desk.step("It is done.")
    assert not over and not info["checks"]["confirmed"] and not info["checks"]["final_state"]


@pytest.mark.parametrize(
    "answer, told",
    [("It is {}.", True), (" ".join(map(str, range(1000))), False), ("It is 12345.", False), ("It is {} or {other}.", False)],
)
def test_a_list_of_guesses_is_no_answer(answer, told):
    record = next(r for r in first(200, goals=2) if r["kinds"][0] == "question")
    goal = record["goals"][0]
    row = record["database"][goal["id"]]
    right = row[goal["asks"]]
    other = next(value for value in row.values() if isinstance(value, int) and value != right)
    script = iter([call(record["tools"][0]["function"], goal["id"]), answer.format(right, other=other), "It is done."])

    def policy(record, messages):
        turn = next(script)
        return {"role": "assistant", "content": turn} if isinstance(turn, str) else turn

    assert played(record, policy, turns=3)[1]["told"] == told


@pytest.mark.parametrize("options", [{"domains": "bank"}, {"goals": 0}, {"injected": 1.5}, {"slips": -1.0}])
def test_wrong_options(options):
    with pytest.raises(UserError, match=f"service: .*{next(iter(options))}"):
        next(service("train", 0, **options))
