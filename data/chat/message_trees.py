"""Convert trees of messages with ranked replies (OpenAssistant) to records of conversations and pairs.

A file holds whole trees, {"prompt": {"text", "role", "replies": […]}}, or single messages that name their parent.
Source: Köpf et al. 2023, "OpenAssistant Conversations".
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data.chat.records import Record

ANSWERS = ("assistant",)


def without_trees(records: Iterable[Record], kind: str, dropped: Counter) -> Iterator[Record]:
    """Yield the records, with trees converted to records of messages or of chosen and rejected answers (see `_flat`).

    Trees made of single messages come last, because all messages must be read before.
    Args: kind: as in data/chat/conversations.py. dropped: counts messages whose parent is missing.
    """
    messages: dict[str, Record] = {}
    for record in records:
        values = record.values
        if "message_id" in values and "parent_id" in values and "text" in values:
            messages[values["message_id"]] = Record(values | {"replies": []}, record.where)
        elif isinstance(values.get("prompt"), Mapping) and "text" in values["prompt"]:
            yield from _flat(values["prompt"], kind, record.where)
        else:
            yield record
    roots = []
    for record in messages.values():
        parent = record.values["parent_id"]
        if parent is None:
            roots.append(record)
        elif parent in messages:
            messages[parent].values["replies"].append(record.values)
        else:
            dropped["a message whose parent is missing"] += 1
    for record in roots:
        yield from _flat(record.values, kind, record.where)


def _flat(root: Mapping, kind: str, where: str) -> Iterator[Record]:
    """Yield the records of a tree: the first message for tasks, else the path of best replies.

    For preferences, yield the best and the worst answer to each message with ranked answers.
    """
    if kind == "task":
        yield Record({"prompt": [_message(root)]}, where)
    elif kind not in ("pair", "labelled"):
        path = [root]
        while replies := _replies(path[-1]):
            path.append(replies[0])
        yield Record({"messages": [_message(node) for node in path]}, where)
    else:
        open_ = [[root]]
        while open_:
            path = open_.pop()
            replies = _replies(path[-1])
            ranked = [r for r in replies if r.get("rank") is not None and r.get("role") in ANSWERS]
            if len(ranked) > 1 and ranked[0]["rank"] < ranked[-1]["rank"]:
                prompt, best, worst = [_message(node) for node in path], _message(ranked[0]), _message(ranked[-1])
                yield Record({"prompt": prompt, "chosen": [best], "rejected": [worst]}, where)
            open_ += [[*path, reply] for reply in reversed(replies)]


def _replies(node: Mapping) -> list[Mapping]:
    """Return the replies, best (rank 0) first, those without a rank last."""
    there = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    return sorted(there, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))


def _message(node: Mapping) -> dict[str, Any]:
    return {"role": node.get("role"), "content": node["text"]}
