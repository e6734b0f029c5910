"""Whether a process is one of several, by what each kind of cluster says."""

import http.server
import threading

import pytest

from lm.errors import UserError
from lm.parallel import cluster

NAMES = (*cluster.VARIABLES, "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY", "GCE_METADATA_IP")
ENDPOINTS = "10.0.0.{}:unknown:10.0.0.{}"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    cluster._tpu_hosts.cache_clear()
    yield
    cluster._tpu_hosts.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "several"),
    [
        ("JAX_COORDINATOR_ADDRESS", "node0:1234", True),
        ("SLURM_STEP_NODELIST", "node[0-3]", True),
        ("MEGASCALE_COORDINATOR_ADDRESS", "slice-0", True),
        ("TPU_WORKER_HOSTNAMES", "a,b", True),
        ("TPU_WORKER_HOSTNAMES", "a", False),
        ("TPU_WORKER_HOSTNAMES", "WARNING: could not determine, this", False),
        ("HOME", "/", False),
    ],
)
def test_variables(variable, value, several, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert cluster.several() == several


@pytest.fixture
def tpu_vm(tmp_path, monkeypatch):
    """A machine with a Google device and libtpu; returns the attributes that its metadata server knows."""
    (tmp_path / "devices" / "0").mkdir(parents=True)
    (tmp_path / "devices" / "0" / "vendor").write_text("0x1ae0\n")
    (tmp_path / "libtpu.py").touch()
    monkeypatch.setattr(cluster, "PCI", tmp_path / "devices")
    monkeypatch.syspath_prepend(tmp_path)
    attributes = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rsplit("/", 1)[1])
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        yield attributes
        server.shutdown()


@pytest.mark.parametrize(
    ("hosts", "slices", "several"), [(1, None, False), (4, None, True), (1, 2, True), (4, 2, True), (None, None, False)]
)
def test_cloud_tpu_vms(hosts, slices, several, tpu_vm):
    if hosts:
        tpu_vm["worker-network-endpoints"] = ",".join(ENDPOINTS.format(i, i) for i in range(hosts))
        tpu_vm["tpu-env"] = "ACCELERATOR_TYPE: 'v5litepod-16'\n" + (f"MEGASCALE_NUM_SLICES: '{slices}'\n" if slices else "")
    assert cluster.several() == several


def test_a_metadata_server_that_does_not_answer(tpu_vm, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    with pytest.raises(UserError, match="TPU_SKIP_MDS_QUERY=1"):
        cluster.several()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert not cluster.several()


def test_other_machines_are_asked_nothing(tpu_vm, monkeypatch):
    tpu_vm["worker-network-endpoints"] = "a:b:c,d:e:f"
    (cluster.PCI / "0" / "vendor").write_text("0x8086\n")
    assert not cluster.several()
