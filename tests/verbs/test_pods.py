"""The files of examples/pods, as far as one machine can run them: with commands of clusters that only look like them."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.verbs import runs

PODS = runs.REPOSITORY / "examples" / "pods"
# Starts the tasks of a Slurm step on this machine; its exit code is the highest of theirs.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
job = {{**os.environ, "SLURM_STEP_NODELIST": "127.0.0.1,other"}}
tasks = range(int(job["SLURM_NTASKS"]))
processes = [subprocess.Popen(command, env={{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}) for i in tasks]
sys.exit(max(process.wait() for process in processes))
"""
SSH = '#!/bin/bash\nexec bash -c "$2"\n'  # the host is this machine
SAY = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0") $*" >>"$SAID"\n'


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder in front of the others in PATH; programs that the test puts there write to tmp_path/said, if they are SAY."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setenv("PYTHON", sys.executable)
    return folder


def put(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def said(tmp_path) -> list[str]:
    path = tmp_path / "said"
    return path.read_text().splitlines() if path.exists() else []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("path", sorted(PODS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_short_and_of_valid_syntax(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    lines = path.read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 128


def test_the_jobset_fills_its_slice():
    jobset = yaml.safe_load((PODS / "gke.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert job["completions"] == job["parallelism"] and job["completionMode"] == "Indexed"
    assert f"--config.mesh.data={slices['replicas']}" in container["command"]
    # A pod failure policy needs this, and without its rule JobSet would restart what cannot work.
    assert pod["restartPolicy"] == "Never"
    assert job["podFailurePolicy"]["rules"] == [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}]
    assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("slices, nodes", [(1, "--node-id=pod"), (2, "--node-count=2 --node-prefix=pod")])
def test_a_queued_resource_of_slices(slices, nodes, commands, tmp_path, monkeypatch):
    put(commands / "gcloud", SAY)
    for name, value in {"NAME": "pod", "ZONE": "z", "TYPE": "v6e-256", "RUNTIME": "r", "SLICES": str(slices)}.items():
        monkeypatch.setenv(name, value)
    assert subprocess.run([PODS / "tpu_vm.sh", "create", "--spot"]).returncode == 0
    of_it = "gcloud compute tpus queued-resources create pod --zone=z --accelerator-type=v6e-256 --runtime-version=r"
    assert said(tmp_path) == [f"{of_it} {nodes} --spot"]


@pytest.mark.parametrize("code, tries", [(0, 1), (1, 3), (2, 1)])
def test_a_command_on_tpu_vms_is_repeated(code, tries, commands, tmp_path, monkeypatch):
    """Quoted as it was given; gcloud runs what follows --command= in the home folder of each host."""
    put(commands / "gcloud", '#!/bin/bash\nlast="${!#}"\ncd "$SAID.home" && exec bash -c "${last#--command=}"\n')
    put(commands / "sleep", SAY)
    (tmp_path / "said.home" / "lmcraft" / ".venv" / "bin").mkdir(parents=True)
    put(tmp_path / "said.home" / "lmcraft" / ".venv" / "bin" / "python", SAY + f"exit {code}\n")
    for name, value in {"NAME": "pod", "ZONE": "z", "RESTARTS": "2"}.items():
        monkeypatch.setenv(name, value)
    line = [PODS / "tpu_vm.sh", "run", "train.py", "--config.samples=('a b', 'c')"]
    assert subprocess.run(line).returncode == code
    assert [text for text in said(tmp_path) if not text.startswith("sleep")] == [
        "python train.py --config.samples=('a b', 'c')"
    ] * tries


@pytest.mark.parametrize(
    "code, restarts, requeued", [(0, 0, False), (1, 0, True), (143, 3, True), (2, 0, False), (1, 20, False)]
)
def test_slurm_queues_a_job_again_that_can_go_on(code, restarts, requeued, commands, tmp_path, monkeypatch):
    put(commands / "srun", f"#!/bin/bash\nexit {code}\n")
    put(commands / "scontrol", SAY)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    assert subprocess.run([PODS / "slurm.sh", "train.py"]).returncode == code
    assert said(tmp_path) == ["scontrol requeue 7"] * requeued


def test_the_unit_is_valid(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    unit = (PODS / "lmcraft@.service").read_text()
    # The programs that a unit names must exist.
    (tmp_path / "lmcraft@.service").write_text(unit.replace("/opt/lmcraft/.venv/bin/python", sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "lmcraft@.service"], capture_output=True, text=True
    )
    assert checked.returncode == 0 and "lmcraft" not in checked.stderr, checked.stderr


@pytest.mark.slow
def test_slurm_starts_one_job_of_all_its_tasks(finished, text, commands, tmp_path):
    put(commands / "srun", SRUN)
    # The port that JAX makes of the number of the job must be free.
    first = 65535 - 2**12 + 1
    job = {"SLURM_JOB_ID": str(2**12 + max(0, free_port() - first) % 2**12), "SLURM_NTASKS": "4"}
    workdir = tmp_path / "run"
    arguments = runs.line(workdir, data__input=text, mesh__slices=2, mesh__data=4, mesh__fsdp=2)[1:]
    done = runs.run([PODS / "slurm.sh", *arguments], **runs.fake_devices(2), **job)
    assert done.returncode == 0, done.stderr[-4000:]
    runs.assert_same_run(workdir, finished, tolerance=1e-5)
    assert sum(json.loads((workdir / "report.json").read_text())["machine"]["devices"].values()) == 8


@pytest.mark.slow
def test_hosts_over_ssh_are_one_job_that_a_signal_stops(finished, fresh, text, commands, tmp_path):
    put(commands / "ssh", SSH)
    hosts = {"HOSTS": "127.0.0.1 other", "PORT": str(free_port())}
    line = [PODS / "ssh.sh", *runs.line(fresh, data__input=text)[1:]]
    with open(tmp_path / "first", "w") as file:
        process = subprocess.Popen(line, cwd=runs.REPOSITORY, env=runs.environment(**hosts), stdout=file, stderr=file)
    assert runs.wait(process, lambda: len(runs.training(fresh)) >= 10), (tmp_path / "first").read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(runs.DEADLINE) == 143, (tmp_path / "first").read_text()
    assert 10 <= runs.steps_saved(fresh)[-1] < runs.STEPS
    done = runs.run(line, **hosts)
    assert done.returncode == 0, done.stderr[-4000:]
    runs.assert_same_run(fresh, finished, tolerance=1e-5)
