"""The Modelfile with which Ollama runs a GGUF file.

Ollama renders chats with a Go template. Ours is derived from the Jinja template: it is rendered with marks for texts, which
gives what stands before and after the text of each role. A template that does more than that is left to Ollama.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data.chat.template import end_of_turn, render
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

MARKS = {"system": "\ue000", "user": "\ue001", "assistant": "\ue002", "again": "\ue003"}  # in no template


class Frames(NamedTuple):
    """What a template writes at the begin, and before and after the text of each role.

    begin: without the BOS token if the tokenizer adds it. system: the system text that it invents; "": none.
    """

    begin: str
    around: Mapping[str, tuple[str, str]]
    system: str


def modelfile(name: str, tokenizer: Tokenizer | None) -> str:
    """Return the content of a Modelfile for the GGUF file `name` in the same folder."""
    lines = [f"FROM ./{name}"]
    if tokenizer is None or tokenizer.chat_template is None:
        return "\n".join([*lines, 'TEMPLATE "{{ .Prompt }}"', ""])
    if (frames := frames_of(tokenizer)) is not None:
        roles = "{{ else if ".join(
            f'eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, (before, after) in frames.around.items()
        )
        answer = frames.around["assistant"][0]
        each = f"{{{{ range .Messages }}}}{{{{ if {roles}{{{{ end }}}}{{{{ end }}}}"
        lines.append(f'TEMPLATE """{frames.begin}{each}{answer}"""')
        lines += [f'SYSTEM """{frames.system}"""'] if frames.system else []
    names = {i: token for token, i in tokenizer.controls.items()}
    try:
        ends = (*tokenizer.stop_ids, end_of_turn(tokenizer))
    except UserError:
        ends = tokenizer.stop_ids
    lines += [f'PARAMETER stop "{names[i]}"' for i in dict.fromkeys(ends) if i in names]
    return "\n".join([*lines, ""])


def frames_of(tokenizer: Tokenizer) -> Frames | None:
    """Return the frames of a tokenizer's chat template, or None if it is not made of such frames."""
    named = tokenizer.special_tokens

    def rendered(roles: Sequence[str], add_generation_prompt: bool = False) -> list[str]:
        """Return the texts between the marks."""
        messages = [{"role": "user" if role == "again" else role, "content": MARKS[role]} for role in roles]
        text, parts = render(messages, tokenizer.chat_template, add_generation_prompt, **named), []
        for role in roles:
            before, _, text = text.partition(MARKS[role])
            parts.append(before)
        return [*parts, text]

    try:
        alone, user_end = rendered(["user"])
        talk = rendered(["user", "assistant", "again"], True)
        assistant, system = talk[1].removeprefix(user_end), None
        try:
            system = rendered(["system", "user"])
        except UserError:  # the template knows no system messages
            user = os.path.commonprefix([alone[::-1], talk[2][::-1]])[::-1]
        else:
            both = system[1], talk[2]  # the end of a turn, and what begins a user's message
            same = os.path.commonprefix([text[::-1] for text in both])[::-1]
            user = system[1].removeprefix(user_end) if all(text.startswith(user_end) for text in both) else same
        bos = named.get("bos_token", "")
        begin = bos if alone.startswith(bos) and not user.startswith(bos) else ""
        around = {"system": (system[0].removeprefix(begin), system[1].removesuffix(user))} if system else {}
        around |= {"user": (user, user_end), "assistant": (assistant, talk[2].removesuffix(user))}
        before = alone.removesuffix(user).removeprefix(begin)
        for first in [()] + [("system",)] * bool(system):
            roles = [*first, "user", "assistant", "again"]
            marks = [*(MARKS[role] for role in roles), ""]
            expected = "".join(text for pair in zip(rendered(roles, True), marks) for text in pair)
            whole = "".join(text for role in roles for text in _text(around, role))
            if expected != begin + ("" if first else before) + whole + assistant:
                return None
        adds_bos = tokenizer.bos_id is not None and tokenizer.prompt_ids("a")[0] == tokenizer.bos_id
        frames = Frames("" if adds_bos else begin, around, _invented(before, around.get("system")))
    except (UserError, ValueError):
        return None
    texts = [frames.begin, frames.system, *(text for pair in around.values() for text in pair)]
    return None if any("{{" in text or '"""' in text for text in texts) else frames


def _text(around: Mapping[str, tuple[str, str]], role: str) -> tuple[str, str, str]:
    before, after = around["user" if role == "again" else role]
    return before, MARKS[role], after


def _invented(text: str, system: tuple[str, str] | None) -> str:
    """Return the system text in what a template writes before the first user's message. Raises ValueError if it is no frame."""
    if not text:
        return ""
    if system is None or not (text.startswith(system[0]) and text.endswith(system[1]) and len(text) > len("".join(system))):
        raise ValueError(text)
    return text[len(system[0]) : len(text) - len(system[1])]
