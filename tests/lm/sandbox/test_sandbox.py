"""Hostile code hurts nothing, for root and for others, with and without each layer that a machine may lack."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lm.sandbox import run as sandbox
from lm.sandbox.confinement import seccomp
from lm.sandbox.run import run_many, strength
from tests.lm.sandbox import hostile

ROOT = Path(__file__).parents[3]
SECRET = "1f0c5a3e"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the sandbox stops accidents alone")


@pytest.fixture
def folder():
    """Where anyone may write, which below pytest's own is nobody's but the owner's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "victim").write_text(SECRET)
        (folder / "victim").chmod(0o666)
        yield folder


def run_python(code, **limits):
    return run_many([code], **limits)[0]


def hold(outcomes, folder):
    wrong = {name: found for name, found in outcomes.items() if found[0] not in found[1].split()}
    assert not wrong
    assert not any(SECRET in printed or "let through" in printed for _, _, printed in outcomes.values())
    assert [path.name for path in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_text() == SECRET


LACKING = [("landlock",), ("namespaces",), ("landlock", "namespaces"), ("capabilities",)]
QUICK = [("landlock", "namespaces")]


@pytest.mark.parametrize("without", [(), *(w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in LACKING)])
def test_hostile_code_hurts_nothing(folder, tmp_path_factory, monkeypatch, without):
    """Without namespaces or Landlock: as in many a container."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert not set(without) & set(strength(without))
    hold(hostile.outcomes(folder, without), folder)
    assert not list(temporary.iterdir())


def test_it_holds_for_an_ordinary_user(folder):
    if os.getuid():
        pytest.skip("the other tests are this one, then")
    there = folder / "there" / "lm"
    there.mkdir(parents=True)
    shutil.copytree(ROOT / "lm/sandbox", there / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("lm/__init__.py", "tests/lm/sandbox/hostile.py"):
        shutil.copy(ROOT / file, there if file.startswith("lm") else there.parent)
    subprocess.run(["chmod", "-R", "a+rX", there.parent], check=True)
    drop = {"user": 65534, "group": 65534, "extra_groups": [], "env": {"PYTHONPATH": str(there.parent)}, "cwd": "/"}

    def usable(python):
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            return not subprocess.run([python, "-c", check], capture_output=True, **drop).returncode
        except OSError:
            return False

    python = next(filter(usable, (sys.executable, "/usr/bin/python3", "/usr/bin/python3.13", "/usr/bin/python3.11")), None)
    if not python:
        pytest.skip("no interpreter that another user may run")
    done = subprocess.run([python, there.parent / "hostile.py", folder], capture_output=True, text=True, **drop)
    assert not done.returncode, done.stderr
    report = json.loads(done.stdout)
    assert report["user"] == 65534 and {"seccomp", "limits", "no new privileges"} <= set(report["strength"])
    shutil.rmtree(folder / "there")
    hold(report["outcomes"], folder)


def test_what_is_allowed_works():
    codes = {
        "2 + 2": "4",
        "x = [1]\nx.append(2)\nx": "[1, 2]",
        "print('é', end='')": "",
        "import hashlib\nhashlib.sha256(b'').hexdigest()[:8]": "'e3b0c442'",
        "from decimal import Decimal\nDecimal('0.1') * 3": "Decimal('0.3')",
        "import datetime\ndatetime.datetime.strptime('2024-02-29', '%Y-%m-%d').day": "29",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nA(1)": "A(x=1)",
        "from __future__ import annotations\ndef f(x: nowhere): pass\nf.__annotations__['x']": "'nowhere'",
        "import random\nrandom.seed(0)\nrandom.randrange(100)": "49",
        "import unittest, itertools, re, json, heapq, typing, fractions\nfractions.Fraction(1, 3)": "Fraction(1, 3)",
        "__name__, __import__('sys').modules['__main__'].__dict__ is globals()": "('__main__', True)",
        "len({'a': 1} | dict(__import__('os').environ))": "1",
        "exit()": "",
    }
    for without in ((), ("landlock", "namespaces")):
        results = run_many(list(codes), timeout=30, without=without)
        assert [(r.outcome, r.value, r.stderr) for r in results] == [("ok", value, "") for value in codes.values()]
        assert results[2].stdout == "é"
        assert [r.finished for r in results] == [True] * (len(codes) - 1) + [False]


def test_a_folder_of_its_own_begins_empty_and_can_be_written():
    if not {"namespaces", "landlock"} <= set(strength()):
        pytest.skip("this machine gives none")
    code = "import os\nfound = os.listdir()\nopen('a', 'w').write('b')\nos.rename('a', 'c')\nfound, open('c').read()"
    assert [result.value for result in run_many([code] * 3)] == ["([], 'b')"] * 3


def test_there_is_no_input_and_outputs_are_in_order(monkeypatch):
    assert run_python("input()").stderr.endswith("EOFError: EOF when reading a line\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    many = run_many([f"print({i})" for i in range(20)])
    assert [int(result.stdout) for result in many] == list(range(20))
    assert run_many([]) == []


def test_a_program_holds_no_descriptor_of_the_supervisor():
    code = "import os\ndef is_open(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
    assert run_python(code + "[fd for fd in range(4096) if is_open(fd)]").value == "[0, 1, 2, 3]"


def test_the_same_code_does_the_same():
    assert len({run_python("[*{'a', 'b', 'c', 'd'}], hash('a')").value for _ in range(3)}) == 1


def test_errors_are_shown_as_python_shows_them():
    result = run_python("def f():\n    return 1 / 0\n\nf()")
    assert result.outcome == "error" and not result.finished
    assert result.stderr.startswith('Traceback (most recent call last):\n  File "<code>", line 4, in <module>\n    f()\n')
    assert "    return 1 / 0\n" in result.stderr and result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run_python("1 +").stderr.count("SyntaxError") == 1
    assert run_python("a\ud800\0").outcome == "error"


def test_what_came_before_the_end_is_kept(monkeypatch):
    late = run_python("print('so far')\nwhile True: pass", timeout=0.5)
    assert (late.outcome, late.stdout, late.stderr) == ("timeout", "so far\n", "[stopped after 0.5 s]")
    assert late.seconds >= 0.5
    monkeypatch.setattr(sandbox, "OUTPUT_LIMIT", 100)
    long = run_python("print('a' * 1000)")
    assert (long.outcome, long.stdout, long.stderr) == ("killed", "a" * 100, "[stopped: it wrote more than 100 bytes]")
    exact = run_python("print('a' * 99)\n'b' * 1000")
    assert (exact.outcome, exact.stdout, exact.value) == ("ok", "a" * 99 + "\n", "'" + "b" * 99)


def test_leaving_early_is_not_finishing():
    for code in ("import sys\nsys.exit(0)\nassert False", "import os\nos._exit(0)\nassert False", "raise SystemExit"):
        result = run_python(code)
        assert result.outcome == "ok" and not result.finished


def test_others_of_a_batch_cannot_be_seen():
    look = "import gc\n[o for o in gc.get_objects() if isinstance(o, dict) and 'other' in str(o.get('code'))]"
    assert run_many([look, "'other'"] * 2)[2].value == "[]"


def test_no_child_outlives_us():
    code = "from lm.sandbox.run import run_many\nrun_many(['while True: pass'], timeout=600)"
    us = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        descendants = []
        while len(descendants) < 2 and us.poll() is None:  # the supervisor and its child
            descendants = children(us.pid) + [grandchild for child in children(us.pid) for grandchild in children(child)]
        ends = [os.pidfd_open(pid) for pid in descendants]
    finally:
        us.send_signal(signal.SIGKILL)
        us.wait()
    for end in ends:
        assert select.select([end], [], [], 30)[0]
        os.close(end)


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            pass
    return found


def test_a_supervisor_that_fails_is_an_outcome(monkeypatch):
    monkeypatch.setattr(sandbox, "START", "raise RuntimeError('broken' + {!r}[:0])")
    results = run_many(["1", "2"])
    assert [result.outcome for result in results] == ["refused"] * 2 and "broken" in results[0].stderr


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_is_of_this_shape_on_every_machine(machine):
    """An interpreter of a few lines runs it: the number of a call, and an argument, to an answer."""
    column, word = seccomp.MACHINES[machine]

    def answer(number, *arguments, opens=True, writes=False, word=word):
        code = seccomp.program(machine, opens, writes)
        data = [number, word, 0, 0] + [half for a in [*arguments, *[0] * 6][:6] for half in (a & 0xFFFFFFFF, a >> 32)]
        at, loaded = 0, 0
        while True:
            operation, then, otherwise, value = seccomp.struct.unpack_from("=HBBI", code, 8 * at)
            at += 1
            if operation == 0x20:
                loaded = data[value // 4]
            elif operation in (0x15, 0x45):
                at += then if (loaded == value if operation == 0x15 else loaded & value) else otherwise
            else:
                assert operation == 0x06
                return value

    refused = seccomp.REFUSE | 1
    assert answer(0, word=3) == seccomp.KILL
    for numbers in seccomp.ALWAYS.values():
        if numbers[column] is not None:
            assert answer(numbers[column], opens=False) == seccomp.ALLOW
    opening = seccomp.OPENING["openat"][column]
    assert answer(opening, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == seccomp.ALLOW
    assert {answer(opening, 0, 0, flag) for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC)} == {refused}
    assert answer(opening, 0, 0, os.O_RDWR, writes=True) == seccomp.ALLOW
    assert answer(opening, opens=False) == refused
    unlink = seccomp.WRITING["unlinkat"][column]
    assert answer(unlink) == refused and answer(unlink, writes=True) == seccomp.ALLOW
    fcntl = seccomp.WITH_ARGUMENT["fcntl"][0][column]
    assert answer(fcntl, 0, 2) == seccomp.ALLOW and answer(fcntl, 0, 8) == refused  # F_SETOWN
    assert answer(seccomp.CLONE3[column]) == seccomp.REFUSE | 38
    # socket, socketpair, connect, clone (fork, vfork), execve, kill, tgkill, ptrace, prctl, execveat
    denied = ((41, 53, 42, 56, 57, 58, 59, 62, 234, 101, 157, 322), (198, 199, 203, 220, 221, 129, 131, 117, 167, 281))[column]
    assert {answer(number, writes=True) for number in denied} == {refused}
    assert answer(0x40000000 | seccomp.ALWAYS["read"][column]) == refused  # the 32-bit calls of x86_64


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_numbers_are_those_of_the_kernel(machine):
    file = Path("/usr/include", {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}[machine])
    if not file.exists():
        pytest.skip("no kernel headers here")
    lines = [line.split()[1:3] for line in file.read_text().splitlines() if line.startswith("#define __NR")]
    known = {name.removeprefix("__NR_").removeprefix("__NR3264_"): int(number) for name, number in lines if number.isdigit()}
    known |= {"newfstatat": known["fstatat"]} if "fstatat" in known else {}
    ours = seccomp.ALWAYS | seccomp.OPENING | seccomp.WRITING | {n: rule[0] for n, rule in seccomp.WITH_ARGUMENT.items()}
    column = seccomp.MACHINES[machine][0]
    assert {name: numbers[column] for name, numbers in ours.items()} == {name: known.get(name) for name in ours}
