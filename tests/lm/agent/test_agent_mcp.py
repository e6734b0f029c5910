"""Public reference servers of the Model Context Protocol are driven over their standard streams."""

import json
import subprocess
import sys
import types

import pytest

pytest.importorskip("mcp")

from lm.agent.consent import Consent
from lm.agent.loop import Rules, run
from lm.agent.mcp_servers import open_server, risk_of
from lm.agent.models import Said
from lm.errors import UserError
from tests.lm.agent.test_agent_loop import call, script

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
