"""The package as pip installs it: its files, its dependencies, and what works from another folder."""

import email
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.verbs import runs

EXTRAS = ("agent", "beam", "buckets", "docs", "gpu", "media", "personal", "sweep", "test", "tpu", "trackers")
FOLDERS = ("benchmarks", "configs", "data", "docs", "examples", "lm", "requirements", "tests")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository, because a build writes into it."""
    copy = tmp_path_factory.mktemp("checkout")
    for path in runs.REPOSITORY.iterdir():
        if path.name in FOLDERS:
            shutil.copytree(path, copy / path.name)  # with __pycache__: a build leaves it out
        elif path.is_file():
            shutil.copy(path, copy)
    return copy


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    """Runs pip without a network: what a build and the package need is in this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", f"--python={python}", *arguments, "--no-deps", "--no-build-isolation", "--no-index"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--wheel-dir", folder, checkout)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as opened:
        yield opened


def test_a_wheel_holds_all_files_of_lm_and_data_and_no_others(wheel):
    files = (path for name in ("lm", "data") for path in (runs.REPOSITORY / name).rglob("*") if path.is_file())
    source = {path.relative_to(runs.REPOSITORY).as_posix() for path in files if path.parent.name != "__pycache__"}
    assert {"lm/reports/templates/page.html.j2", "lm/evals/tasks/specs/mmlu.yaml", "data/text/chat_template.jinja"} <= source
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == source


def test_a_wheel_declares_the_requirements_files(wheel):
    metadata = email.message_from_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))))
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert sorted(metadata.get_all("Provides-Extra")) == sorted(EXTRAS)
    declared = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert {_text(r) for r in declared if r.marker is None or "extra" not in str(r.marker)} == requirements("requirements.txt")
    for extra in EXTRAS:
        of_extra = [r for r in declared if r.marker and f'extra == "{extra}"' in str(r.marker)]
        for requirement in of_extra:
            requirement.marker = None
        assert {_text(r) for r in of_extra} == requirements(f"requirements/{extra}.txt"), extra


def requirements(file: str) -> set[str]:
    lines = (runs.REPOSITORY / file).read_text().splitlines()
    return {_text(Requirement(line)) for line in lines if not line.startswith("#")}


def _text(requirement: Requirement) -> str:
    return str(requirement).lower()


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_an_installed_package_works_from_any_folder(checkout, finished, tmp_path, editable):
    """In an environment of its own, which takes the dependencies, and nothing else, from this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip("install", "--quiet", *(["--editable"] if editable else []), checkout, python=python)

    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "data" / "mine.txt").touch()  # a folder of files does not hide the package
    place = run(python, "-c", "import lm; print(lm.__path__[0])", cwd=elsewhere).strip()
    assert Path(place) == (checkout if editable else site) / "lm"
    code = f"""
import lm
model, tokenizer = lm.load({str(finished)!r})
print(len(lm.generate(model, tokenizer, ["a"], max_new_tokens=4)))
"""
    assert run(python, "-c", code, cwd=elsewhere) == "1\n"
    line = [python, "-m", "lm.generate", f"--checkpoint={finished}", "--prompt=ab", "--max_new_tokens=4"]
    assert run(*line, cwd=elsewhere).startswith("ab")
    run(python, "-m", "lm.convert", "export", f"--workdir={finished}", "--to=exported", cwd=elsewhere)
    assert (elsewhere / "exported" / "model.safetensors").is_file()


def run(*command: str | Path, cwd: Path) -> str:
    """Return the standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, env=runs.environment(), capture_output=True, text=True, timeout=runs.DEADLINE)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
