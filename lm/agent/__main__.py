r"""Let a model work on tasks with tools, on the terminal.

python -m lm.agent --checkpoint=runs/sft [--tools=calculator,files --folder=notes] [--mcp='python -m mcp_server_time']
python -m lm.agent --url=http://127.0.0.1:8000/v1 --task='What is 17 * 23?' --traces=traces.jsonl

Each line of the standard input is a task, or --task is the only one. The model calls tools and sees their answers until it
answers or its budget ends. A tool that writes, runs or sends asks first, unless --allow or --grant permits it; without a
terminal it is denied. docs/agent.md explains what is asked when, and the guard against instructions in what is read.

--traces keeps a record of every run, which `python -m lm.agent.records` shows and turns into training data.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from lm import cli
from lm.agent.consent import Consent, parse_grant, parse_risks
from lm.agent.loop import Budget, Rules, run
from lm.agent.records import append
from lm.errors import UserError
from lm.files import compile_cache
from lm.files.untrusted import shown
from lm.train.values import SEEDS

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A training run's workdir, a Hugging Face folder or a GGUF file; also gs://… or s3://…")
flags.DEFINE_string("url", None, "Instead of --checkpoint: a server with OpenAI's API, such as http://127.0.0.1:8000/v1.")
flags.DEFINE_string("model", "", "With --url: the name of the model there.")
flags.DEFINE_string("task", "", "The task; default: each line of the standard input is one.")
flags.DEFINE_list(
    "tools", ["calculator"], "Any of calculator, python, files (that read), write_file, memory (reads), add_note."
)
flags.DEFINE_string("folder", "", "The folder that tools of files are confined to.")
flags.DEFINE_string("home", "", "With memory or add_note: the store of lm.personal.")
flags.DEFINE_string("passphrase_file", "", "A file with the passphrase of the store; lm.personal says how else it is given.")
flags.DEFINE_multi_string("mcp", [], "Command that starts an MCP server, whose tools are added; may be given several times.")
flags.DEFINE_list("risk", [], "Risk of tools of MCP servers, in place of what they declare: NAME=reads, NAME=sends, …")
flags.DEFINE_list("allow", ["reads"], "Risks that run without asking: reads, writes, runs, sends; '' asks always.")
flags.DEFINE_multi_string("grant", [], "Calls that run without asking, whatever was read: 'write_file path=notes/*'.")
flags.DEFINE_bool("guard", True, "Whether calls are checked for what untrusted text may have caused.")
flags.DEFINE_bool("mark", True, "Whether untrusted answers are marked as data.")
flags.DEFINE_bool("plan", False, "Whether the model first writes a plan.")
flags.DEFINE_bool("declare", True, "Whether the prompt lists the tools; no for a model that was trained without the list.")
flags.DEFINE_integer("steps", 16, "Most turns of the model for a task.", lower_bound=1)
flags.DEFINE_integer("tokens", 4096, "Most tokens that the model writes for a task.", lower_bound=1)
flags.DEFINE_float("seconds", 300.0, "Most seconds for a task.")
flags.DEFINE_string("system", "", "The system message.")
flags.DEFINE_float("temperature", 0.0, "Sampling temperature; 0: greedy.", lower_bound=0.0)
flags.DEFINE_integer("seed", 0, "Seed of the samples.", lower_bound=0, upper_bound=SEEDS)
flags.DEFINE_string("traces", "", "File of JSON lines to add the trace of each task to.")


def main() -> None:
    cli.parse_flags(sys.argv)
    if (FLAGS.checkpoint is None) == (FLAGS.url is None):
        raise UserError("give --checkpoint=runs/sft, a model here, or --url=http://127.0.0.1:8000/v1, one that is served")
    if FLAGS.model and FLAGS.url is None:
        raise UserError(f"--model={FLAGS.model} names a model of a server: give --url too, or leave it out")
    budget = Budget(FLAGS.steps, FLAGS.tokens, FLAGS.seconds)
    allowed, risks = parse_risks(list(filter(None, FLAGS.allow))), _risks()
    if FLAGS.traces and Path(FLAGS.traces).suffix != ".jsonl":
        raise UserError(f"--traces={FLAGS.traces}: name a file that ends in .jsonl")
    compile_cache.switch_on()
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        tools = _tools(stack, risks)
        grants = tuple(parse_grant(text, tools) for text in FLAGS.grant)
        model, name = _model()
        asks = ask if is_terminal else None
        rules = Rules(budget, Consent(allowed, grants, asks), FLAGS.guard, FLAGS.mark, FLAGS.plan, FLAGS.system)
        if is_terminal:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for task in [FLAGS.task] if FLAGS.task else tasks(is_terminal):
            done = run(model, tools, task, rules, name=name, tell=tell if is_terminal else lambda kind, text: None)
            if FLAGS.traces:
                append(Path(FLAGS.traces), done)
            print("\n".join(map(shown, done.answer.splitlines())) if done.finish == "answer" else "(no answer)", flush=True)
            blocked = [] if is_terminal else [call for call in done.calls if call["outcome"] in ("denied", "refused")]
            if blocked:
                why = f"{blocked[0]['name']}: {blocked[0]['reason']}"
                print(f"agent: calls that did not run: {len(blocked)} ({shown(why)})", file=sys.stderr, flush=True)
            if done.finish in ("steps", "tokens", "seconds"):
                print(f"agent: the run ended by {done.finish}: --{done.finish} sets its limit", file=sys.stderr, flush=True)


def _tools(stack: contextlib.ExitStack, risks: dict[str, str]) -> list:
    from lm.agent.builtin import open_tools
    from lm.agent.mcp_servers import open_server
    from lm.agent.models import on_this_machine
    from lm.agent.tools import check_tools

    if FLAGS.url is not None and FLAGS.home and not on_this_machine(FLAGS.url):
        raise UserError(f"--url={FLAGS.url} would get your notes: serve the model on this machine, or give --checkpoint")
    tools = open_tools([name for name in FLAGS.tools if name], FLAGS.folder, FLAGS.home, FLAGS.passphrase_file)
    for command in FLAGS.mcp:
        tools += stack.enter_context(open_server(command, risks))
    if unknown := sorted(risks.keys() - {tool.name for tool in tools}):
        raise UserError(f"--risk: no tool {unknown[0]!r}; there are {', '.join(tool.name for tool in tools)}")
    check_tools(tools)
    return tools


def _risks() -> dict[str, str]:
    found = {}
    for part in filter(None, FLAGS.risk):
        name, equals, risk = part.partition("=")
        if not equals:
            raise UserError(f"--risk={part} must be NAME=RISK, such as get_current_time=reads")
        parse_risks([risk], "--risk")
        found[name] = risk
    return found


def _model():
    """Return the model that the flags name, and its name for the traces."""
    from lm.agent.models import open_model, remote_model

    sampling = {"temperature": FLAGS.temperature, "seed": FLAGS.seed}
    if FLAGS.url is not None:
        return remote_model(FLAGS.url, FLAGS.model, **sampling), FLAGS.model or FLAGS.url
    return open_model(FLAGS.checkpoint, declare=FLAGS.declare, **sampling), FLAGS.checkpoint


def tasks(is_terminal: bool) -> Iterator[str]:
    """Yield the lines of the standard input that hold a task; on a terminal after a prompt.

    Raises: UserError if there is none, except on a terminal.
    """
    found = is_terminal
    while True:
        if is_terminal:
            print("> ", end="", flush=True)
        line = sys.stdin.buffer.readline()
        if not line and not found:
            raise UserError("no task: give --task='…', or a line of the standard input for each")
        if not line:
            return
        if text := line.decode("utf-8", "replace").strip():
            found = True
            yield text


def ask(question: str) -> bool:
    """Ask the user on the terminal. Only "y" and "yes" agree."""
    print(f"{shown(question)}\nRun it? [y/N] ", end="", flush=True)
    return sys.stdin.buffer.readline().decode("utf-8", "replace").strip().lower() in ("y", "yes")


def tell(kind: str, text: str) -> None:
    """Print what happens."""
    if kind != "answer":
        print(f"  {kind}: {shown(text)[:500]}", flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__)
