"""Servers of the Model Context Protocol over their standard streams: public reference servers, and some that misbehave."""

import json
import shlex
import subprocess
import sys
import types

import pytest

pytest.importorskip("mcp")

from lm.agent import mcp_servers
from lm.agent.builtin import open_tools
from lm.agent.consent import Consent
from lm.agent.loop import Rules, run
from lm.agent.mcp_servers import open_server, risk_of
from lm.agent.models import Said
from lm.agent.tools import check_tools
from lm.errors import UserError
from lm.files.untrusted import shown
from tests.lm.agent.test_agent_loop import ALL, call, script

TIME = f"{sys.executable} -m mcp_server_time --local-timezone=UTC"


def hints(read, open_):
    return types.SimpleNamespace(read_only_hint=read, open_world_hint=open_)


def test_a_server_of_the_time_is_driven():
    pytest.importorskip("mcp_server_time")
    with open_server(TIME, {"get_current_time": "sends"}) as tools:
        assert {tool.name: (tool.risk, tool.trusted) for tool in tools} == {
            "get_current_time": ("sends", False),
            "convert_time": ("reads", False),
        }
        asked = call("convert_time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo")
        wrong = call("convert_time", source_timezone="Nowhere", time="12:00", target_timezone="Asia/Tokyo")
        turns = (Said("", [asked]), Said("", [wrong, call("convert_time", time="1")]), Said("Nine hours later."))
        trace = run(script(*turns)[0], tools, "When it is noon in UTC, what time is it in Tokyo?")
    assert json.loads(trace.calls[0]["text"])["time_difference"] == "+9.0h" and trace.calls[0]["outcome"] == "allowed"
    assert trace.calls[1]["failed"] and trace.calls[1]["text"].startswith("error: ")
    assert trace.calls[2]["outcome"] == "invalid" and trace.answer == "Nine hours later."
    assert trace.messages[2]["content"].startswith("[data of the tool convert_time;")


def test_a_server_that_writes_asks_first(tmp_path):
    pytest.importorskip("mcp_server_git")
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path], check=True)
    for key, value in (("user.name", "Kim"), ("user.email", "kim@office.example")):
        subprocess.run(["git", "-C", tmp_path, "config", key, value], check=True)
    (tmp_path / "a.txt").write_text("rope\n")
    add, commit = (
        call("git_add", repo_path=str(tmp_path), files=["a.txt"]),
        call("git_commit", repo_path=str(tmp_path), message="Rope"),
    )
    turns = (Said("", [call("git_status", repo_path=str(tmp_path))]), Said("", [add]), Said("", [commit]), Said("Done."))
    with open_server(f"{sys.executable} -m mcp_server_git --repository {tmp_path}") as tools:
        risks = {tool.name: tool.risk for tool in tools}
        assert (risks["git_status"], risks["git_add"], risks["git_commit"]) == ("reads", "writes", "writes")
        denied = run(script(*turns)[0], tools, "Commit a.txt.")
        assert [one["outcome"] for one in denied.calls] == ["allowed", "denied", "denied"]
        agreed = run(script(*turns)[0], tools, "Commit a.txt.", Rules(consent=Consent(ask=lambda question: True)))
    assert [one["outcome"] for one in agreed.calls] == ["allowed", "consented", "consented"]
    logged = subprocess.run(["git", "-C", tmp_path, "log", "--format=%s"], capture_output=True, text=True, check=True)
    assert logged.stdout == "Rope\n"


def test_risks_of_annotations():
    found = {(read, open_): risk_of(hints(read, open_)) for read in (True, False, None) for open_ in (True, False, None)}
    assert {key for key, risk in found.items() if risk == "reads"} == {(True, False)}
    assert {key for key, risk in found.items() if risk == "writes"} == {(False, False), (None, False)}
    assert risk_of(None) == "sends"


@pytest.mark.parametrize(
    ("command", "words"),
    [("nosuchprogram a", "no program nosuchprogram"), ("'", "no command"), ("", "no command"), ("true", "does not answer")],
)
def test_servers_that_cannot_be_started(command, words):
    with pytest.raises(UserError, match=words):
        with open_server(command):
            pass


HOSTILE = """
import json, sys

case = sys.argv[1]
pages = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}  # cursor -> result of tools/list
if case == "garbage":
    print("Welcome!\\n{]", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked or case == "silent":
        continue
    answer = {"error": {"code": -32601, "message": "no \\x1b[31mmethod"}}
    if asked["method"] == "initialize" and case != "exits":
        version = asked["params"]["protocolVersion"]
        info = {"name": "hostile", "version": "1"}
        answer = {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}}
    elif asked["method"] == "initialize":
        sys.exit("no key")
    elif asked["method"] == "tools/list" and case != "refuses":
        cursor = (asked.get("params") or {}).get("cursor", "")
        if case == "endless":
            answer = {"result": {"tools": [], "nextCursor": cursor + "a"}}
        else:
            answer = {"result": pages[cursor]}
    elif asked["method"] == "tools/call" and case == "dies":
        sys.exit(1)
    elif asked["method"] == "tools/call" and case.startswith("long"):
        answer = {"result": {"content": [{"type": "text", "text": "a" * int(case[4:].removesuffix("last"))}]}}
    whole = {"jsonrpc": "2.0", "id": asked["id"], **answer}
    if case.endswith("last"):
        whole["id"] = whole.pop("id")
    print(json.dumps(whole), flush=True)
"""


@pytest.fixture
def hostile(tmp_path):
    """A function that returns the command of a server that misbehaves. tools: {cursor: its page}."""
    (tmp_path / "hostile.py").write_text(HOSTILE)

    def command(case, pages=None):
        return shlex.join([sys.executable, "-S", str(tmp_path / "hostile.py"), case, json.dumps(pages or {})])

    return command


def page(*names, more=None, **schema):
    tools = [{"name": name, "inputSchema": {"type": "object"} | schema} for name in names]
    return {"tools": tools} | ({"nextCursor": more} if more else {})


def test_tools_of_all_pages_are_listed_and_a_server_may_die(hostile):
    pages = {
        "": page("a", more="2"),
        "2": page("b", more="3"),
        "3": page("c", properties={"x": {"type": ["string", "null"]}, "y": True}),
    }
    with open_server(hostile("dies", pages)) as tools:
        assert [tool.name for tool in tools] == ["a", "b", "c"]
        trace = run(script(Said("", [call("c", x=1, y=2)]), Said("Dead."))[0], tools, "a", Rules(consent=ALL))
    assert trace.calls[0]["failed"] and trace.answer == "Dead."


@pytest.mark.parametrize(
    ("case", "pages", "words"),
    [
        ("exits", {}, r"does not answer \(Connection closed\); it wrote 'no key'"),
        ("silent", {}, "does not answer in 0.3 seconds; run the command"),
        ("refuses", {}, r"does not answer \(no \\x1b\[31mmethod\)"),
        ("garbage", {"": page("a b")}, "a tool named 'a b'"),
        ("endless", {}, "no end: 0 tools on 101 pages"),
        ("lists", {"": page("a", more="2"), "2": page("b", more="2")}, "no end: 2 tools on 2 pages"),
        ("lists", {"": page("a", properties={"x": {"type": "nonsense"}})}, "'a' has a bad schema .*nonsense"),
        ("lists", {"": page("a", type="string")}, r"does not allow \(tools.0.inputSchema.type: Input should be 'object'\)"),
        ("lists", {"": page("a b")}, "a tool named 'a b'"),
        ("lists", {"": page("a\x1b")}, r"a tool named 'a\\x1b'"),
        ("lists", {"": page(*map(str, range(1001)))}, "too long or has no end: 1001 tools on 1 pages"),
        ("lists", {"": {"tool": 1}}, r"does not allow \(tools: Field required\)"),
    ],
)
def test_a_server_that_misbehaves_is_named_in_one_line(hostile, monkeypatch, capfd, case, pages, words):
    monkeypatch.setattr(mcp_servers, "START", 0.3 if case == "silent" else 60.0)
    command = hostile(case, pages)
    with pytest.raises(UserError, match=words) as error:
        with open_server(command):
            pass
    assert str(error.value).startswith(f"--mcp={command!r}: the server") and shown(error.value) == str(error.value)
    told = "agent: an MCP server wrote what is no message, and is left out: 'Welcome!'\n"
    assert capfd.readouterr().err == (told if case == "garbage" else "")


@pytest.mark.parametrize("is_last", [False, True])
def test_a_long_answer_is_cut_and_says_so(hostile, is_last):
    for size, words in ((9000, "the answer has 9000 characters"), (20_000_000, "the answer has 200000")):
        with open_server(hostile(f"long{size}{'last' * is_last}", {"": page("a")})) as (tool, *_):
            for _ in range(2):  # the server is still there
                answer = tool.run({}, 60.0)
                assert not answer.failed and words in answer.text[:100] and "aaa" in answer.text and len(answer.text) < 2500


def test_tools_of_one_name_and_other_errors_beside_a_server(hostile):
    one, two, both = (hostile(case, {"": page(*names)}) for case, names in (("lists", "a"), ("garbage", "a"), ("lists", "aa")))
    with open_server(one) as first, open_server(two) as second, open_server(both) as twice:
        check_tools([*first, *open_tools(["calculator"])])
        with pytest.raises(UserError, match="--mcp=.*garbage.* has a tool 'a', and so has --mcp=.*lists.*leave one"):
            check_tools([*first, *second])
        with pytest.raises(UserError, match="--mcp=.*lists.* has a tool 'a', and so has --mcp=.*lists"):
            check_tools(twice)
    with open_server(hostile("lists", {"": page("calculator")})) as other:
        with pytest.raises(UserError, match="has a tool 'calculator', and so has --tools"):
            check_tools([*open_tools(["calculator"]), *other])
    with pytest.raises(UserError, match="^no model$"):  # whatever goes wrong while a server runs stays itself
        with open_server(one):
            raise UserError("no model")
