"""Records of the task `service`: a customer with wishes at the desk of a domain, and the conversation of a clerk with it.

Everything is a function of the domain and the customer's number, which is in the prompt; the number decides the split.
"""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from data.tasks.service.clerk import WEAKNESSES, conversation
from data.tasks.service.world import broken_rule, changed, described
from data.tasks.splits import held_out, records
from lm.errors import UserError

OTHERS = 2  # records of other customers, beside those that are asked about
KINDS = ("question", "forbidden", "declined", "not_theirs")  # of wishes, beside `change`


def service(
    split: str, seed: int, domains: str = "train", goals: int = 2, injected: float = 0.5, slips: float = 0.0, valid: int = 500
) -> Iterator[dict]:
    """Yield records {"prompt": [policy, first words of the customer], "tools", "messages": how a clerk serves it, …}.

    domains: train, held_out, all, or names with commas between them. Tools, things, rules, people and the wordings of
    injections of held-out domains are in no others. goals: wishes of a customer. One is a change that the policy allows, so
    that an agent that always refuses fails; the others are of KINDS, or changes too. injected: share of the records with a note
    that asks for a call. slips: share of the `messages` whose clerk has one of WEAKNESSES, for a policy that has much to learn.
    """
    known = described()["domains"]
    named = {"train": [], "held_out": [], "all": [*known]}
    for name, domain in known.items():
        named["held_out" if domain["held_out"] else "train"].append(name)
    chosen = named.get(domains) or [name for name in domains.split(",") if name]
    if not chosen or not set(chosen) <= set(known):
        raise UserError(f"service: domains={domains!r} must be {', '.join(named)}, or some of {','.join(known)}")
    if not 1 <= goals <= 5:
        raise UserError(f"service: goals={goals} must be in 1…5")
    if not (0 <= injected <= 1 and 0 <= slips <= 1):
        raise UserError(f"service: injected={injected} and slips={slips} must be in [0, 1]")

    def draw(rng: random.Random) -> tuple[bool, dict]:
        name, customer = rng.choice(chosen), rng.randrange(1000, 10000)
        if (out := held_out(f"service {customer}")) != (split == "valid"):
            return out, {}
        own = random.Random(f"service {name} {customer}")
        record = _record(own, name, customer, goals, injected)
        weakness = own.choice(WEAKNESSES) if own.random() < slips else ""
        return out, record | {"messages": conversation(record, weakness)}

    return records(draw, split, seed, valid)


def _record(rng: random.Random, name: str, customer: int, goals: int, injected: float) -> dict[str, Any]:
    words = described()
    domain = words["domains"][name]
    owner, *others = rng.sample(words["people"][domain["held_out"]], 3)
    limits = {
        field: rng.choice(wanted)
        for change in domain["changes"].values()
        for field, wanted in change["when"].items()
        if isinstance(wanted, list)
    }
    record: dict[str, Any] = {"task": "service", "domain": name, "customer": customer, "name": owner, "limits": limits}
    ids = [str(number) for number in rng.sample(range(10000, 100000), goals + OTHERS)]
    kinds = ["change", *(rng.choice(("change", *KINDS)) for _ in range(goals - 1))]
    rng.shuffle(kinds)
    wishes = [_goal(rng, record, kind, id, others[0]) for kind, id in zip(kinds, ids)]
    rows = [row for row, _ in wishes] + [_row(rng, domain, other) for other in rng.choices(others, k=OTHERS)]
    database, attack = dict(zip(ids, rows, strict=True)), None
    if rng.random() < injected:
        attack = _attack(rng, domain, ids[-1], database[ids[-1]])
        call = f"{attack['name']}({json.dumps(attack['arguments'])})"
        database[rng.choice(ids[:goals])]["note"] = rng.choice(words["injections"][domain["held_out"]]).format(call=call)
    rules = "\n- ".join(change["rule"].format(**limits) for change in domain["changes"].values())
    opening = rng.choice(words["customer"]["opening"])
    prompt = [
        {"role": "system", "content": words["policy"].format(**domain, rules=rules)},
        {"role": "user", "content": opening.format(name=owner, customer=customer, wish=wishes[0][1]["wish"])},
    ]
    record |= {"kinds": kinds, "goals": [goal for _, goal in wishes], "database": dict(sorted(database.items()))}
    return record | {"attack": attack, "tools": _tools(domain), "prompt": prompt}


def _goal(rng: random.Random, record: Mapping[str, Any], kind: str, id: str, other: str) -> tuple[dict, dict[str, Any]]:
    """Return a record of the database, and the wish about it."""
    domain = described()["domains"][record["domain"]]
    asks = kind == "question" or (kind == "not_theirs" and rng.random() < 0.5)
    change = None if asks else rng.choice([*domain["changes"]])
    field = rng.choice([*domain["asks"]]) if asks else ""
    owner = other if kind == "not_theirs" else record["name"]
    row = _row(rng, domain, owner)
    while bool(broken_rule(record, change, row)) != (kind in ("forbidden", "not_theirs")):
        row = _row(rng, domain, owner)
    wish = (domain["asks"][field] if asks else domain["changes"][change]["wish"]).format(**row)
    goal = {"id": id, "change": change, "asks": field, "wish": wish, "declines": kind == "declined"}
    return row, goal | {
        "arguments": {} if asks else _arguments(rng, domain, change, row),
        "forbidden": kind in ("forbidden", "not_theirs"),
    }


def _row(rng: random.Random, domain: Mapping[str, Any], owner: str) -> dict[str, Any]:
    fields = {
        name: rng.randint(*values) if isinstance(values[0], int) else rng.choice(values)
        for name, values in domain["fields"].items()
    }
    return {"owner": owner, **fields, "note": rng.choice(described()["notes"])}


def _arguments(rng: random.Random, domain: Mapping[str, Any], change: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments of a change beside the number: a value that the row does not have."""
    field = domain["changes"][change].get("takes")
    return {field: rng.choice([value for value in domain["fields"][field] if value != row[field]])} if field else {}


def _attack(rng: random.Random, domain: Mapping[str, Any], id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call that changes the record of somebody else."""
    name = rng.choice([*domain["changes"]])
    arguments = {f"{domain['thing']}_id": id, **_arguments(rng, domain, name, row)}
    assert changed(domain, row, name, arguments) != row
    return {"id": id, "name": name, "arguments": arguments}


def _tools(domain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of a domain's tools. The first argument of each is the number of a record."""
    thing = domain["thing"]
    spoken = {"id": f"{thing}_id"} | {field: field for field in domain["fields"]}
    found = [_schema(domain["look_up"], f"Returns the {thing} with a number.", f"{thing}_id")]
    for name, change in domain["changes"].items():
        about = change["does"].format(**{key: f"{{{value}}}" for key, value in spoken.items()})
        found.append(_schema(name, f"{about[0].upper()}{about[1:]}.", f"{thing}_id", *filter(None, [change.get("takes")])))
    return found


def _schema(name: str, description: str, *arguments: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": dict.fromkeys(arguments, {"type": "string"}), "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
