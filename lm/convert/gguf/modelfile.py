"""The Modelfile with which Ollama runs a GGUF file.

Ollama renders chats with a Go template. Ours is derived from the Jinja template, rendered with a mark for each text: that gives
what stands before and after the text of each role. A template that does more than that is left to Ollama.
"""

import os
from typing import NamedTuple

from data.chat.template import end_of_turn, render
from data.text.tokenizer import Tokenizer
from lm.errors import UserError

MARK = "\ue000"  # in no template
TALK = ("user", "assistant", "user")


class Frames(NamedTuple):
    """What a template writes at the begin, and before and after the text of each role. system: what it adds itself, or ""."""

    begin: str
    around: dict[str, tuple[str, str]]
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
        each = f"{{{{ range .Messages }}}}{{{{ if {roles}{{{{ end }}}}{{{{ end }}}}"
        lines.append(f'TEMPLATE """{frames.begin}{each}{frames.around["assistant"][0]}"""')
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
    bos = tokenizer.special_tokens.get("bos_token", "")

    def rendered(*roles: str, answer: bool = True) -> str:
        messages = [{"role": role, "content": MARK} for role in roles]
        return render(messages, tokenizer.chat_template, answer, **tokenizer.special_tokens)

    def framed(*roles: str) -> str:
        return "".join(MARK.join(around[role]) for role in roles) + answer

    try:
        talk, user_end = rendered(*TALK), rendered("user", answer=False).split(MARK)[1]
        begin = bos if talk.startswith(bos) else ""
        first, _, second, last = talk.removeprefix(begin).split(MARK)
        try:
            with_system = rendered("system", *TALK).removeprefix(begin)
            before_system, third, *_ = with_system.split(MARK)
        except UserError:  # the template knows no system messages
            with_system, before_system, third = "", "", second
        before_user = [first, second.removeprefix(user_end), third.removeprefix(user_end)]
        user = os.path.commonprefix([text[::-1] for text in before_user])[::-1]
        answer = last.removeprefix(user_end)
        around = {"system": (before_system, third.removesuffix(user))} if with_system else {}
        around |= {"user": (user, user_end), "assistant": (answer, second.removesuffix(user))}
        added = first.removesuffix(user)  # a system message of the template's own
        system = added.removeprefix(around["system"][0]).removesuffix(around["system"][1]) if added else ""
    except (UserError, ValueError, LookupError):
        return None
    start = begin + (system.join(around["system"]) if system else "")
    if talk != start + framed(*TALK) or (with_system and with_system != framed("system", *TALK)):
        return None
    adds_bos = tokenizer.bos_id is not None and tokenizer.prompt_ids("a")[0] == tokenizer.bos_id
    frames = Frames("" if adds_bos else begin, around, system)
    texts = [frames.begin, system, *(text for pair in around.values() for text in pair)]
    return None if any("{{" in text or '"""' in text for text in texts) else frames
