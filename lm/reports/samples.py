"""Samples of an alignment run by prompt, with marks on the words that changed."""

import difflib
import json
import re
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

SHOWN_PROMPTS, SHOWN_STEPS, SHOWN_CHARACTERS = 8, 5, 2000


def same_prompt(sample: dict) -> str:
    """Return a key that samples of one prompt share."""
    return json.dumps(sample.get("prompt"), sort_keys=True)


def shown_samples(samples: Sequence[dict]) -> list[dict]:
    """Return what the page shows for each prompt: {"prompt": messages, "newest": sample, "earlier": [samples]}.

    A sample's `text` is its completion; `marked` also marks the words that the sample before did not have. Of many steps a few
    are shown, evenly spread, including the first and the newest.
    """
    prompts: dict[str, list[dict]] = {}
    for sample in samples:
        prompts.setdefault(same_prompt(sample), []).append(sample)
    shown = []
    for of_prompt in list(prompts.values())[:SHOWN_PROMPTS]:
        picked = sorted({round(i) for i in np.linspace(0, len(of_prompt) - 1, min(len(of_prompt), SHOWN_STEPS))})
        entries, before = [], None
        for sample in (of_prompt[i] for i in picked):
            text = _cut(_completion(sample))
            entries.append({**sample, "text": text, "marked": marked(before, text)})
            before = text
        shown.append({"prompt": _messages(of_prompt[-1].get("prompt")), "newest": entries[-1], "earlier": entries[:-1]})
    return shown


def marked(before: str | None, after: str) -> Markup:
    """Return `after`, escaped, with <ins> around words that are not in `before`; no marks if `before` is None."""
    if before is None:
        return escape(after)
    old, new = (re.findall(r"\s*\S+|\s+", text) for text in (before, after))
    pieces = []
    for kind, _, _, begin, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = escape("".join(new[begin:end]))
        pieces.append(text if kind == "equal" or not text else Markup("<ins>{}</ins>").format(text))
    return Markup("").join(pieces)


def _cut(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return f"{text[:SHOWN_CHARACTERS]} … ({more:,} more characters)" if more > 0 else text


def _completion(sample: dict) -> str:
    """Return the completion; with tool calls, all its turns."""
    turns = [turn for turn in sample.get("messages") or () if isinstance(turn, dict)]
    if len(turns) < 2:
        return str(sample.get("completion") or "")
    lines = []
    for turn in turns:
        calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls") or ()]
        lines.append(f"[{turn.get('role', '')}] " + " → ".join(filter(None, [str(turn.get("content") or ""), *calls])))
    return "\n".join(lines)


def _messages(prompt) -> list[dict]:
    """Return a prompt, given as messages or as a text, as [{role, content}]."""
    messages = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    messages = [message for message in messages if isinstance(message, dict)]
    return [{"role": m.get("role", ""), "content": _cut(str(m.get("content") or ""))} for m in messages]
