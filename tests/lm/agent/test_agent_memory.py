"""The personal store as tools of an agent: what they find and keep, and that what they found does not leave the machine."""

import sys

import pytest

from lm.agent.builtin import open_tools
from lm.agent.consent import Consent
from lm.agent.loop import Rules, run
from lm.agent.models import Said
from lm.agent.tools import RISKS, AgentTool, schema
from lm.infer.calls import Answer
from lm.personal.items import exchange, note
from tests.lm.personal.stores import PASSPHRASE, made
from tests.verbs import runs

KEY = "The cabin key is under the blue pot."


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store in tmp_path/home with two items, whose passphrase is in the environment."""
    found = made(tmp_path / "home", monkeypatch)
    said = [{"role": "user", "content": "When does the ferry leave?"}, {"role": "assistant", "content": "At nine."}]
    found.add([note(KEY), exchange(said, "a test")])
    return found


def opened(store) -> dict[str, AgentTool]:
    return {tool.name: tool for tool in open_tools(["memory", "add_note"], home=str(store.home))}


def test_search_and_notes(store):
    tools = opened(store)
    assert {name: (tool.risk, tool.trusted) for name, tool in tools.items()} == {
        "search_memory": ("reads", False),
        "add_note": ("writes", False),
    }
    search, keep = (lambda text, run=tool.run: run({"text": text}, 1.0) for tool in tools.values())
    first = store.ids()[0]
    assert search("where is the key?").text.startswith(f"[{first} 20") and search("key").text.endswith(f" note] {KEY}")
    assert "user: When does the ferry leave?\nassistant: At nine." in search("ferry").text
    assert search("zebra").text == "(nothing is found)"
    assert keep("The zebra is called Otto.").text == "kept the note" and len(store.ids()) == 3
    assert "Otto" in search("zebra").text and keep("The zebra is called Otto.").text == "the note was there already"
    store.forget([first])
    assert KEY not in search("key").text  # what was forgotten after the tools were opened
    for answer in (search(" "), keep(" ")):
        assert answer.failed and answer.text.startswith("error: ") and "empty" in answer.text
    assert open_tools(["memory"], home=str(store.home))[0].name == "search_memory" and len(store.ids()) == 2


def test_the_agent_answers_from_it_and_what_it_read_is_not_sent(store):
    """The user has allowed everything beforehand, and nobody is there to ask."""
    sent = []
    mail = AgentTool(schema("mail", "Mails.", ("text",), text="string"), lambda a, s: sent.append(a) or Answer("ok"), "sends")
    turns = iter(
        [
            Said("", [{"name": "search_memory", "arguments": {"text": "cabin key"}}]),
            Said("", [{"name": "mail", "arguments": {"text": KEY}}]),
            Said("Under the blue pot."),
        ]
    )
    trace = run(
        lambda *_: next(turns),
        [*opened(store).values(), mail],
        "Where is the cabin key?",
        Rules(consent=Consent(allowed=frozenset(RISKS))),
    )
    assert trace.answer == "Under the blue pot." and KEY in trace.calls[0]["text"] and trace.calls[0]["untrusted"]
    assert [call["outcome"] for call in trace.calls] == ["allowed", "denied"] and sent == []


def test_mistakes_are_one_line(store, tmp_path):
    url, home = "--url=http://127.0.0.1:9/v1", f"--home={store.home}"
    (wrong := tmp_path / "wrong").write_text("not the passphrase")
    for flags, words in (
        ((url, "--tools=memory"), "--home is missing: name the store"),
        ((url, "--tools=add_note"), "--home is missing: name the store of lm.personal for add_note"),
        ((url, home), "add memory to --tools"),
        ((url, "--tools=memory", f"--home={tmp_path}"), "holds no store"),
        ((url, "--tools=memory", home, f"--passphrase_file={wrong}"), "wrong key"),
        (("--url=http://example.org/v1", "--tools=memory", home), "would get your notes"),
        (("--url=http://localhost:80@example.org/v1", "--tools=memory", home), "would get your notes"),
        ((url, "--tools=memory", home), "no answer"),
        (("--url=http://[a/v1",), "Invalid IPv6 URL"),
        (("--url=http://a b/v1",), "control characters"),
    ):
        done = runs.run([sys.executable, "-m", "lm.agent", "--task=a", *flags], LMCRAFT_PASSPHRASE=PASSPHRASE)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr[-2000:]
        assert words in done.stderr, (flags, done.stderr)
