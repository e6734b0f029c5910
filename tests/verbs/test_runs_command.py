"""`python -m lm.reports` as a user runs it."""

import subprocess
import sys

from tests.lm.reports.made_runs import aligned, curated, trained
from tests.verbs import runs


def reports(*arguments) -> subprocess.CompletedProcess:
    return runs.run([sys.executable, "-m", "lm.reports", *map(str, arguments)], **runs.NO_JAX)


def test_the_page_of_a_folder_needs_no_jax(tmp_path):
    trained(tmp_path / "demo")
    aligned(tmp_path / "demo" / "grpo", tmp_path / "demo")
    curated(tmp_path / "corpus")
    done = reports(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/runs.html: 3 runs: 3 finished\n"
    assert 'href="demo/grpo/report.html"' in (tmp_path / "runs.html").read_text()


def test_chosen_workdirs_and_another_file(tmp_path):
    for name in ("a", "b", "c"):
        trained(tmp_path / name, seed=name)
    done = reports(tmp_path / "a", "--runs=a,b", tmp_path / "b", tmp_path / "c", f"--out={tmp_path}/pages/mine.html")
    assert done.stdout == f"{tmp_path}/pages/mine.html: 2 runs: 2 finished\n", done.stderr
    page = (tmp_path / "pages" / "mine.html").read_text()
    assert 'href="../a/report.html"' in page and "../c/report.html" not in page
    assert not (tmp_path / "runs.html").exists()


def test_what_cannot_be_shown_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ((tmp_path / "empty",), "no run in it or below"),
        ((tmp_path / "missing",), "no such folder"),
        (("--out=x.html",), "name a folder of runs"),
        ((tmp_path, "--rums=x"), "rums"),
        ((tmp_path, f"--out={tmp_path}"), "a folder; name a file"),
    ):
        done = reports(*arguments)
        assert done.returncode == 2 and done.stdout == "", arguments
        assert done.stderr.startswith("lm.reports: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_help_teaches():
    done = reports("--help")
    assert done.returncode == 0
    for text in ("python -m lm.reports RUNS_DIR", "--runs", "--out", "exit code is 2"):
        assert text in done.stdout
