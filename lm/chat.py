r"""Talk to a trained model on the terminal.

python -m lm.chat --checkpoint=runs/sft [--system='Answer in one sentence.' --temperature=0.7 --seed=0]
printf 'What is a cat?\n/exit\n' | python -m lm.chat --checkpoint=runs/sft

The model answers with its chat template and sees the whole conversation. Ctrl-C stops an answer and keeps what was said. On the
terminal there is a history of messages (arrow keys), and a text of several lines can be pasted. If the input is no terminal,
every line is a message.

Commands:
  /help          list the commands
  /image FILE    show a file with the next message, if the model sees
  /audio FILE    let it hear a file with the next message, if it hears
  /system TEXT   start anew with this system message; without TEXT: show it
  /reset         start anew with the same system message
  /undo          remove the last message and its answer
  /save FILE     write the conversation to a new FILE.jsonl, which align.py --config=configs/align/sft.py reads
  /exit          leave, as does Ctrl-D
"""

import contextlib
import difflib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from absl import flags

from lm import cli
from lm.errors import UserError
from lm.files import compile_cache, saving
from lm.files.untrusted import shown
from lm.progress import COMPILING
from lm.train.checks import check_speaker
from lm.train.values import SEEDS

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A training run's workdir, a Hugging Face folder or a GGUF file; also gs://… or s3://…")
flags.DEFINE_string("system", "", "The system message.")
flags.DEFINE_multi_string("image", [], "A file that the first message shows; may be given several times.")
flags.DEFINE_multi_string("audio", [], "A file of sound that the first message has; may be given several times.")
flags.DEFINE_integer("max_new_tokens", 512, "Maximum number of tokens of an answer.", lower_bound=1)
flags.DEFINE_float("temperature", 0.7, "Sampling temperature; 0: greedy.", lower_bound=0.0)
flags.DEFINE_float("top_p", 0.95, "Nucleus sampling: the smallest set of tokens with this probability.", upper_bound=1.0)
flags.DEFINE_integer("top_k", 0, "Only the k likeliest tokens; 0: all.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of the conversation; every answer has its own.", lower_bound=0, upper_bound=SEEDS)
DTYPE = "Type of the matrices; default: the one of training, bfloat16 for the quantised ones of a GGUF file."
flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], DTYPE)

COMMANDS = __doc__.partition("Commands:\n")[2]
NAMES = [line.split()[0] for line in COMMANDS.splitlines()]
LEAVE = "/exit or Ctrl-D leaves"
# On a terminal, control characters of an answer could move the cursor or change the terminal's settings.
HARMLESS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")


def main() -> None:
    cli.parse_flags(sys.argv)
    if FLAGS.checkpoint is None:
        raise UserError("--checkpoint is missing: python -m lm.chat --checkpoint=runs/sft; --help lists the flags")
    if FLAGS.top_p <= 0:
        raise UserError(f"--top_p={FLAGS.top_p} must be above 0 and at most 1")
    compile_cache.switch_on()
    warnings.formatwarning = lambda message, *_: f"chat.py: {shown(message)}\n"
    check_speaker("--checkpoint", FLAGS.checkpoint)
    conversation = _prepared()
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start programs with Ctrl-C ignored
        print(f"{FLAGS.checkpoint}: /help lists the commands; {LEAVE}")
    lines = (line.decode("utf-8", "replace") for line in sys.stdin.buffer)
    talk(conversation, typed() if is_terminal else lines, is_terminal)


def _prepared():
    """Return the conversation when its programs are compiled. Say on stderr what takes how long, from the command's start."""
    begin = psutil.Process().create_time()
    _tell_pipe(f"loading {FLAGS.checkpoint}…")
    conversation = _conversation()
    loaded = time.time()
    _tell_pipe(COMPILING)
    conversation.engine.warm()
    ready = time.time()
    _tell_pipe(f"ready in {ready - begin:.1f} s: {loaded - begin:.1f} s to load, {ready - loaded:.1f} s to compile")
    return conversation


def _conversation():
    """Return the conversation that the flags describe."""
    from lm.align.reward_model import chat_template_of
    from lm.convert.multimodal.processor import towers_of
    from lm.infer.conversation import Conversation
    from lm.infer.engine.open import open_engine
    from lm.infer.engine.request import Sampling
    from lm.infer.engine.room import Capacity

    engine = open_engine(FLAGS.checkpoint, Capacity(rows=1), dtype=FLAGS.dtype or "")
    if engine.tokenizer is None:
        raise UserError(f"--checkpoint={FLAGS.checkpoint} has no tokenizer, so it cannot read messages")
    template = chat_template_of(FLAGS.checkpoint)
    sampling = Sampling(FLAGS.max_new_tokens, FLAGS.temperature, FLAGS.top_p, FLAGS.top_k, seed=FLAGS.seed)
    path = Path(FLAGS.checkpoint)
    conversation = Conversation(engine, sampling, template, FLAGS.system, towers_of(path, engine.config, engine.tokenizer))
    for kind in ("image", "audio"):
        for file in FLAGS[kind].value:
            conversation.show(kind, file)
    return conversation


def typed() -> Iterator[str]:
    """Yield what the user types."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import ANSI

    session = PromptSession(ANSI("\x1b[1m> \x1b[0m" if _has_colours() else "> "), history=_history())
    while True:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                print(LEAVE)
            continue
        except EOFError:
            return
        yield text


def _history():
    """Return the history of earlier chats, or an empty one if its file cannot be written. Only its owner can read it."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        file = compile_cache.home() / "chat_history"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileHistory(str(file))


def talk(conversation, texts: Iterator[str], is_terminal: bool) -> None:
    """Answer messages and obey commands until the input ends."""
    tell = _tell_user if is_terminal else _tell_pipe
    for text in texts:
        text = text.strip() if not text.startswith("/") else text.rstrip()
        if not text:
            continue
        if text == "/exit":
            return
        try:
            if text.startswith("/"):
                obey(conversation, text, tell)
            else:
                answer(conversation, text, tell, is_terminal)
        except UserError as error:
            if not is_terminal:
                raise
            tell(str(error))


def answer(conversation, text: str, tell: Callable[[str], None], is_terminal: bool) -> None:
    """Print the answer while it is sampled; on a terminal also its thought, dimmed, and its speed."""
    begin, first, count, stopped, thinking = time.perf_counter(), 0.0, 0, False, False
    with contextlib.closing(conversation.ask(text, tell)) as pieces:
        try:
            for piece in pieces:
                first, count = first or time.perf_counter(), count + len(piece.tokens)
                if is_terminal:
                    thinking = _print_on_terminal(piece, thinking)
                else:
                    print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            stopped = True
    print(flush=True)
    if is_terminal:
        end = time.perf_counter()
        speed = f"{(count - 1) / (end - first):.1f} tokens/s, " if count > 1 else ""
        tell(f"{count} tokens, {speed}first after {(first or end) - begin:.2f} s" + (", stopped" if stopped else ""))


def _print_on_terminal(piece, thinking: bool) -> bool:
    """Print a piece of an answer, its thought dimmed. thinking: the piece before was of the thought. Return whether it was."""
    if piece.thought:
        dim, plain = ("\x1b[2m", "\x1b[0m") if _has_colours() else ("", "")
        print(f"{dim}{piece.thought.translate(HARMLESS)}{plain}", end="", flush=True)
    if piece.text:
        print("\n\n" * (thinking or bool(piece.thought)) + piece.text.translate(HARMLESS), end="", flush=True)
    return not piece.text and (thinking or bool(piece.thought))


def obey(conversation, text: str, tell: Callable[[str], None]) -> None:
    """Run a command."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == "/help":
        print(COMMANDS, end="", flush=True)
    elif name in ("/image", "/audio"):
        conversation.show(name[1:], argument)
        tell(f"{argument} goes with the next message")
    elif name == "/system" and not argument:
        tell(f"system message: {conversation.system}" if conversation.system else "there is no system message")
    elif name == "/system":
        conversation.begin(argument)
        tell("a new conversation, with this system message")
    elif name == "/reset":
        conversation.begin(conversation.system)
        tell("a new conversation" + (", with the same system message" if conversation.system else ""))
    elif name == "/undo":
        removed = conversation.undo()
        tell("removed the last message and its answer" if removed else "there is nothing to remove")
    elif name == "/save":
        tell(save(conversation.messages, argument))
    else:
        near = difflib.get_close_matches(name, NAMES, n=1)
        tell(f"no command {name}; " + (f"did you mean {near[0]}? " if near else "") + "/help lists them")


def save(messages: list[dict], name: str) -> str:
    """Write the conversation as one record of instruction tuning. Return what was done, or why not."""
    file = Path(name).expanduser()
    if file.suffix != ".jsonl":
        return "name a file that ends in .jsonl: /save FILE.jsonl"
    if not any(message["role"] == "assistant" for message in messages):
        return "there is no answer to save yet"
    if file.exists():
        return f"{file} exists; name a new file"
    try:
        saving.write_lines(file, [{"messages": messages}])
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    return f"saved to {file}"


def _tell_user(line: str) -> None:
    print(f"\x1b[2m{shown(line)}\x1b[0m" if _has_colours() else shown(line), flush=True)


def _tell_pipe(line: str) -> None:
    print(f"chat.py: {shown(line)}", file=sys.stderr, flush=True)


def _has_colours() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


if __name__ == "__main__":
    cli.run(main, __doc__)
