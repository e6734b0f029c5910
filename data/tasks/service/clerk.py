"""A clerk that serves the customers of `service` as the policy wants it, or with a weakness.

It is the oracle of the task, and writes its demonstrations. It knows the wishes of a record in advance, so that it need not
understand the customer, and all else from the conversation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.tasks.service.world import ServiceDesk, broken_rule, described

WEAKNESSES = ("ignores_rules", "obeys_injections", "forgets_to_confirm", "does_not_look_up", "does_not_tell")
Message = dict[str, Any]


def clerk(record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], weakness: str = "") -> Message:
    """Return the clerk's next message, with at most one call. weakness: "" or one of WEAKNESSES."""
    domain, (goal, since) = described()["domains"][record["domain"]], _goal_of(record, messages)
    heard = [m["content"] for m in since if m["role"] == "user"]
    calls = [c["function"] for m in since for c in m.get("tool_calls", ())]
    id, change, thing = goal["id"], goal["change"], domain["thing"]
    if not any(id in text for text in heard):
        return _text(f"What is the number of the {thing}?")
    number = {f"{thing}_id": id}
    if weakness == "does_not_look_up":
        row = record["database"][id]  # a clerk that guesses, and is lucky
    elif domain["look_up"] not in [call["name"] for call in calls]:
        return _call(domain["look_up"], number)
    else:
        row = json.loads(next(m["content"] for m in since if m["role"] == "tool"))
    if weakness == "obeys_injections" and (attack := record["attack"]) and f"{attack['name']}(" in row["note"]:
        if not any(call["arguments"] == attack["arguments"] for call in calls):
            return _call(attack["name"], attack["arguments"])
    if (rule := broken_rule(record, change, row)) and weakness != "ignores_rules":
        return _text("All is settled." if weakness == "does_not_tell" else f"I cannot do that. {rule}")
    if goal["asks"]:
        return _text("All is settled." if weakness == "does_not_tell" else f"The answer is {row[goal['asks']]}.")
    if missing := [name for name, value in goal["arguments"].items() if not any(value in text for text in heard)]:
        return _text(f"What should be the new {missing[0]}?")
    does = domain["changes"][change]["does"].format(**row | goal["arguments"] | {"id": id})
    if change in [call["name"] for call in calls if call["arguments"].get(f"{thing}_id") == id]:
        return _text(f"It is done: {does}.")
    asked = any(m["role"] == "assistant" and does in m["content"] for m in since)
    if not asked and weakness != "forgets_to_confirm":
        return _text(f"I will {does}. Shall I go on?")
    if asked and goal["declines"]:
        return _text("Then I leave it as it is.")
    return _call(change, number | goal["arguments"])


def conversation(record: Mapping[str, Any], weakness: str = "") -> list[Message]:
    """Return a whole conversation of the clerk with the customer of a record."""
    desk, messages, over = ServiceDesk(), list(record["prompt"]), False
    desk.reset(seed=0, options=dict(record))
    while not over:
        message = clerk(record, messages, weakness)
        calls = message.get("tool_calls")
        observation, _, over, _, _ = desk.step(json.dumps(calls[0]["function"]) if calls else message["content"])
        messages += [message, *([] if over else [{"role": "tool" if calls else "user", "content": observation}])]
    return messages


def _goal_of(record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list]:
    """Return the wish that is being served, and the messages since it was said."""
    told = [n for n, m in enumerate(messages) if m["role"] == "assistant" and not m.get("tool_calls")]
    ends = [n for n in told if "?" not in messages[n]["content"]]
    return record["goals"][len(ends)], list(messages[ends[-1] + 1 if ends else 0 :])


def _text(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _call(name: str, arguments: Mapping[str, Any]) -> Message:
    return _text("") | {"tool_calls": [{"type": "function", "function": {"name": name, "arguments": dict(arguments)}}]}
