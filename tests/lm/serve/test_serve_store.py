import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.serve import store as stores
from lm.serve.store import Exchange, Feedback, Store

ROOT = Path(__file__).parents[3]
SECRET = "jane.roe@corp.example.org"


def exchange(id, text="Hello.", user="ann", at=None, **more):
    messages = [{"role": "user", "content": text}]
    return Exchange(id, time.time() if at is None else at, "step-7", "law", user, messages, [f"You said: {text}"], **more)


@pytest.fixture
def store(tmp_path):
    with_thread = Store(tmp_path / "exchanges.sqlite")
    yield with_thread
    with_thread.close()


def bytes_of(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_an_exchange_comes_back_with_its_feedback(store):
    store.exchange(exchange("a", measures={"length": 3}, decisions=[{"rule": "x"}], flagged=True, finish="stop"))
    number, *about = store.feedback(Feedback("a", -1, comment="wrong", correction="Right.", user="bob")).result(30)
    [found] = stores.read(store.path)
    assert (found["id"], found["checkpoint"], found["adapter"], found["flagged"], found["finish"]) == (
        "a",
        "step-7",
        "law",
        1,
        "stop",
    )
    assert found["messages"] == [{"role": "user", "content": "Hello."}] and found["answers"] == ["You said: Hello."]
    assert found["measures"] == {"length": 3} and found["decisions"] == [{"rule": "x"}]
    assert about == ["step-7", "law"]
    [rating] = found["feedback"]
    assert (rating["number"], rating["rating"], rating["comment"], rating["correction"]) == (number, -1, "wrong", "Right.")


def test_no_personal_data_and_no_name_reaches_the_disk(store, tmp_path):
    store.exchange(exchange("a", f"I am {SECRET}.", user="Ann Example"))
    store.feedback(Feedback("a", 1, comment=f"Thanks, {SECRET}", user="Ann Example")).result(30)
    store.flush()
    assert b"<EMAIL>" in bytes_of(tmp_path)
    assert SECRET.encode() not in bytes_of(tmp_path) and b"Ann Example" not in bytes_of(tmp_path)


def test_feedback_brings_its_exchange_or_is_refused(store):
    assert store.feedback(Feedback("a", 1), about=exchange("a")).result(30) == (1, "step-7", "law")
    with pytest.raises(LookupError):
        store.feedback(Feedback("nobody's", 1)).result(30)
    assert [found["id"] for found in stores.read(store.path)] == ["a"]


def test_deletion_by_user_leaves_no_byte_beside_a_running_server(store, tmp_path):
    store.exchange(exchange("a", "The falcon flies at night.", user="ann"))
    store.exchange(exchange("b", "Something else.", user="bob"))
    store.feedback(Feedback("a", 1, user="ann", comment="zebra crossing")).result(30)
    store.feedback(Feedback("b", 1, user="ann", comment="zebra crossing")).result(30)
    command = [sys.executable, "-m", "lm.serve.store", "delete", f"--store={store.path}", "--user=ann"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0 and "deleted 3" in done.stdout, done.stderr
    late = exchange("c", "The falcon flies at night.", user="ann", at=time.time() - 60)  # was in the server's memory
    store.exchange(late)
    store.exchange(exchange("d", "New.", user="ann"))
    store.flush()
    assert [(found["id"], found["feedback"]) for found in stores.read(store.path)] == [("b", []), ("d", [])]
    store.close()
    assert b"falcon" not in bytes_of(tmp_path) and b"zebra" not in bytes_of(tmp_path)


def test_retention_by_days_and_by_bytes(tmp_path):
    old = time.time() - 3 * 86400
    store = Store(tmp_path / "s.sqlite", days=0, megabytes=0)
    for n in range(40):
        store.exchange(exchange(f"{n:02}", f"word{n} " * 2000, at=old + n if n < 20 else None))
    store.feedback(Feedback("00", 1)).result(30)
    store.close()
    file = stores.connect(tmp_path / "s.sqlite")
    assert stores.clean(file, 2, 0) == 20
    assert file.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    before = stores.size(file)
    stores.clean(file, 0, before / 2e6)
    ids = [id for (id,) in file.execute("SELECT id FROM exchanges ORDER BY id")]
    assert stores.size(file) <= before / 2 and 5 < len(ids) < 12 and ids[-1] == "39"  # the oldest went


def test_kill_9_loses_no_acknowledged_feedback(tmp_path):
    """A process prints each number after its feedback is acknowledged, and is killed while it writes."""
    code = """
import sys, time
from lm.serve.store import Exchange, Feedback, Store
store = Store(sys.argv[1])
for n in range(100_000):
    about = Exchange(str(n), time.time(), "", "", "", [], ["x"])
    store.feedback(Feedback(str(n), 1), about).result()
    print(n, flush=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "s.sqlite")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        said = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    found = {row["id"]: len(row["feedback"]) for row in stores.read(tmp_path / "s.sqlite")}
    assert all(found[str(n)] == 1 for n in said) and len(said) >= 50


def test_a_full_disk_is_an_error_of_that_feedback_alone(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.flush()
    blocker = sqlite3.connect(tmp_path / "s.sqlite")
    limit = blocker.execute("PRAGMA page_count").fetchone()[0]
    blocker.close()
    store._ask(lambda file: file.execute(f"PRAGMA max_page_count = {limit + 2}").fetchone()).result(30)
    with pytest.raises(sqlite3.Error):
        store.feedback(Feedback("a", 1), about=exchange("a", "many words " * 5000)).result(30)
    assert store.feedback(Feedback("b", 1), about=exchange("b", "few")).result(30)
    store.close()


def test_alerts_are_kept(store):
    alert = {"time": 1.5, "checkpoint": "c", "adapter": "", "stream": "length", "text": "changed", "detail": {"seen": 3}}
    store.alert(alert).result(30)
    [row] = stores.connect(store.path).execute("SELECT * FROM alerts")
    assert row == (1, *list(alert.values())[:5], '{"seen": 3}')


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.sqlite").write_text(json.dumps({}) * 1000)
    for path, create in ((tmp_path / "x.sqlite", True), (tmp_path / "none.sqlite", False)):
        with pytest.raises(UserError):
            stores.connect(path, create)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path / "other.sqlite")
