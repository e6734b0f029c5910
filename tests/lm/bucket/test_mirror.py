"""A mirror and its bucket, for both kinds of buckets: what is uploaded, in which order, and what another machine finds."""

import json
import queue
import threading
import types
from pathlib import Path

import pytest

from lm.bucket import copies, places
from lm.bucket.mirror import Mirror
from lm.bucket.owner import LOCK, Owner
from lm.bucket.steps import newest_whole
from lm.bucket.store import Store
from lm.errors import UserError
from lm.files import checksums
from tests import emulators
from tests.slow import all_but


@pytest.fixture(scope="module", params=all_but(["s3"], ["s3", "gs"]))
def server(request):
    with getattr(emulators, request.param)() as bucket:
        yield bucket


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    server.system.__class__.clear_instance_cache()
    machine(monkeypatch, tmp_path / "one")
    yield server
    if names := server.names():
        server.system.rm([f"{server.url}/{name}" for name in names])


def machine(monkeypatch, folder: Path) -> None:
    """This machine from now on: one with this cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    copies._fetched.cache_clear()


def opened(bucket, **keep) -> Mirror:
    mirror = Mirror(f"{bucket.url}/run", lambda line: pytest.fail(line), **keep)
    mirror.open()
    return mirror


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def checkpoint(workdir: Path, step: int) -> None:
    """A folder such as lm.runs.checkpoint writes."""
    place = workdir / "checkpoints" / str(step)
    write(
        place, {"_CHECKPOINT_METADATA": "{}", "meta/metadata": f"{step}", "state/d/1": f"arrays {step}", "state/manifest": ""}
    )
    for item in ("meta", "state"):
        checksums.write(place / item)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_another_machine_goes_on_where_the_first_one_ended(bucket, monkeypatch, tmp_path):
    first = opened(bucket)
    write(first.folder, {"config.json": '{"a": 1}', "metrics.jsonl": "1\n", "data/ab/dataset.json": "{}", "data/ab/rows": "r"})
    write(first.folder, {"tensorboard/events": "e", "half.new": "", ".lock": "", "data/.cd.incomplete/rows": ""})
    for step in (20, 40):
        checkpoint(first.folder, step)
    before = contents(first.folder)
    assert first.finish() is None
    left_out = {"half.new", "data/.cd.incomplete/rows"}
    assert bucket.names("run") == (before.keys() - left_out) | {".writer"}

    machine(monkeypatch, tmp_path / "two")
    second = opened(bucket)
    assert second.folder != first.folder
    fetched = {name for name in before if not name.startswith(("checkpoints/20/", "tensorboard/"))} - left_out
    assert contents(second.folder) == {name: before[name] for name in fetched}
    (second.folder / "metrics.jsonl").write_text("1\n2\n")
    checkpoint(second.folder, 60)
    assert second.finish() is None
    assert bucket.read("run/metrics.jsonl") == b"1\n2\n"
    steps = {name.split("/")[1] for name in bucket.names("run") if name.startswith("checkpoints/")}
    assert steps == {"40", "60"}  # two are kept, though the second machine never had step 20
    assert "tensorboard/events" in bucket.names("run")

    machine(monkeypatch, tmp_path / "one")  # whose folder is behind now
    third = opened(bucket)
    assert contents(third.folder)["metrics.jsonl"] == "1\n2\n" and not (third.folder / "checkpoints/40").exists()
    assert third.finish() is None


def test_a_healthy_checkpoint_that_another_machine_saved_stays(bucket, monkeypatch, tmp_path):
    first = opened(bucket)
    write(first.folder, {"config.json": "{}"})
    for step in (10, 20, 40):
        checkpoint(first.folder, step)
    assert first.finish() is None
    machine(monkeypatch, tmp_path / "two")
    second = opened(bucket)
    write(second.folder, {"healthy.json": '{"step": 20}'})
    checkpoint(second.folder, 60)
    assert second.finish() is None
    assert {name.split("/")[1] for name in bucket.names("run") if name.startswith("checkpoints/")} == {"20", "40", "60"}


def test_what_a_run_deletes_is_deleted_in_the_bucket(bucket):
    mirror = opened(bucket, keep_last=1)
    write(mirror.folder, {"config.json": "{}", "draft": "x"})
    checkpoint(mirror.folder, 20)
    mirror._upload(mirror._files(False))
    assert "draft" in bucket.names("run")
    bucket.put("run/notes.txt", b"of someone else")
    (mirror.folder / "draft").unlink()
    (mirror.folder / "checkpoints" / "20").rename(mirror.folder / "checkpoints" / "20.damaged")
    checkpoint(mirror.folder, 40)
    assert mirror.finish() is None
    names = bucket.names("run")
    assert "draft" not in names and "notes.txt" in names
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"40"}


def test_a_half_uploaded_checkpoint_is_not_taken(bucket, monkeypatch, tmp_path):
    mirror = opened(bucket)
    write(mirror.folder, {"config.json": "{}"})
    for step in (20, 40):
        checkpoint(mirror.folder, step)
    assert mirror.finish() is None
    store = Store(f"{bucket.url}/run")
    listing = store.list()
    assert newest_whole(store, listing) == {"checkpoints": "checkpoints/40"}
    for name in ("state/d/1", "state/checksums.json", "meta/metadata", "_CHECKPOINT_METADATA"):
        rest = {other: entry for other, entry in listing.items() if other != f"checkpoints/40/{name}"}
        assert newest_whole(store, rest) == {"checkpoints": "checkpoints/20"}, name
    bucket.put("run/checkpoints/40/state/d/1", b"ar")  # of another size
    bucket.put("run/checkpoints/60/state/d/1", b"what a lost machine had uploaded")

    machine(monkeypatch, tmp_path / "two")
    other = opened(bucket)
    assert [path.name for path in (other.folder / "checkpoints").iterdir()] == ["20"]
    assert other.finish() is None
    assert not any(name.startswith("checkpoints/60/") for name in bucket.names("run"))
    assert Path(copies.local(f"{bucket.url}/run"), "checkpoints/20/state/d/1").read_text() == "arrays 20"


def test_after_a_kill_the_same_machine_keeps_what_was_not_uploaded(bucket, capsys):
    killed = opened(bucket)
    write(killed.folder, {"config.json": "{}", "metrics.jsonl": "1\n"})
    killed._upload(killed._files(False))
    checkpoint(killed.folder, 20)
    end_without_a_word(killed)
    assert LOCK in bucket.names("run")
    again = opened(bucket)  # its own lock does not keep it waiting
    assert "fetching" not in capsys.readouterr().out
    assert again.finish() is None
    assert "checkpoints/20/_CHECKPOINT_METADATA" in bucket.names("run") and LOCK not in bucket.names("run")


def end_without_a_word(mirror: Mirror) -> None:
    """What a kill leaves: no thread, the lock in the bucket, no lock on this machine."""
    mirror._ending.set()
    mirror._thread.join()
    mirror._owner._released.set()
    mirror._owner._thread.join()
    mirror._local.release()


def test_a_lock_that_beats_is_respected_and_a_dead_one_is_not(bucket):
    store, said = Store(f"{bucket.url}/run"), []
    alive = Owner(store, "one", said.append, beat=0.02)
    with pytest.raises(UserError, match=r"in use by another run, process \d+ on "):
        Owner(store, "two", said.append, poll=0.01)
    alive._released.set()
    alive._thread.join()
    heir = Owner(store, "two", said.append, beat=0.02, dead=0.2, poll=0.02)
    assert json.loads(store.read(LOCK))["mirror"] == "two"
    heir.release()
    assert store.read(LOCK) is None and not said


def test_a_job_whose_lock_was_taken_over_ends(bucket):
    store, said = Store(f"{bucket.url}/run"), []
    slow = Owner(store, "one", said.append, beat=0.02)
    store.write(LOCK, b'{"job": "other", "who": "process 7 on elsewhere"}')
    slow._thread.join(20)
    assert len(said) == 1 and "process 7 on elsewhere" in said[0]


def test_a_run_does_not_end_well_while_files_are_missing_in_the_bucket(bucket):
    mirror = opened(bucket)
    write(mirror.folder, {"config.json": "{}"})
    mirror._store = Store(f"{bucket.url[:-6]}gone/run")  # the bucket has been deleted
    assert "gone/run" in (problem := mirror.finish()) and "does not hold all of the run" in problem


def test_what_has_not_arrived_as_it_was_is_sent_again(bucket, capsys):
    mirror = opened(bucket)
    write(mirror.folder, {"config.json": "{}", "notes": "all of it"})
    mirror._upload(mirror._files(False))
    bucket.put("run/notes", b"half")
    assert mirror.finish() is None
    assert bucket.read("run/notes") == b"all of it"
    assert "bucket/run: 1 files are not there, such as notes; trying for up to 5 minutes" in capsys.readouterr().err


def test_bytes_arrive_as_they_are(bucket, tmp_path):
    files = {"1": b"x\r", "2": b"x\r\n", "3": b"\r", "4": b"x\n--==0==--\n", "5": b"\0", "6": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    store = Store(f"{bucket.url}/bytes")
    store.put(files, tmp_path)
    assert {name: bucket.read(f"bytes/{name}") for name in files} == files
    assert {name: entry.size for name, entry in store.list().items()} == {name: len(content) for name, content in files.items()}


def test_a_request_that_is_not_answered_is_sent_again(bucket, monkeypatch):
    """The first request goes to a server that never answers; its port then belongs to the real one."""
    bucket.put("stalled/name", b"its content")
    variable = "AWS_ENDPOINT_URL" if bucket.url.startswith("s3") else "STORAGE_EMULATOR_HOST"
    monkeypatch.setattr("lm.bucket.store.ANSWER", 1)
    monkeypatch.setattr("s3fs.S3FileSystem.read_timeout", 1)
    with emulators.mute_at_first(bucket.variables[variable]) as url:
        monkeypatch.setenv(variable, url)
        bucket.system.__class__.clear_instance_cache()
        answers = queue.SimpleQueue()
        read = threading.Thread(target=lambda: answers.put(Store(f"{bucket.url}/stalled").read("name")), daemon=True)
        read.start()
        assert answers.get(timeout=50) == b"its content"  # gcsfs alone would wait 300 s, and s3fs waits 15 s


def test_a_failed_upload_is_tried_again_while_the_run_goes_on(bucket, monkeypatch):
    monkeypatch.setattr("lm.bucket.mirror.EVERY", 0.01)
    monkeypatch.setattr("lm.bucket.mirror.LOGS", 0.0)
    said = queue.SimpleQueue()  # pytest's own stderr may lose what a thread writes while it is read
    monkeypatch.setattr("sys.stderr", types.SimpleNamespace(write=said.put, flush=lambda: None))
    mirror = opened(bucket)
    there, mirror._store = mirror._store, Store(f"{bucket.url[:-6]}gone/run")
    write(mirror.folder, {"config.json": "{}"})
    failed = said.get(timeout=60) + said.get(timeout=60)  # print writes a line and its end
    assert "gone/run" in failed and failed.endswith("uploads are tried again\n")
    mirror._store = there
    assert (said.get(timeout=60) + said.get(timeout=60)).endswith("run: uploads go on\n")
    assert "config.json" in bucket.names("run") and mirror.finish() is None and said.empty()


def test_a_run_that_is_refused_leaves_nothing_in_the_bucket(bucket):
    assert opened(bucket).finish() is None
    assert bucket.names() == set()


def test_a_folder_with_other_objects_is_no_workdir(bucket):
    bucket.put("run/holiday.jpg", b"1")
    with pytest.raises(UserError, match="holds no run"):
        opened(bucket)
    assert bucket.names("run") == {"holiday.jpg"}


def test_a_copy_holds_what_a_reader_needs_and_follows_the_bucket(bucket, capsys):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "metrics.jsonl", "deep/er.json"):
        bucket.put(f"model/{name}", name.encode())
    url = f"{bucket.url}/model"
    folder = Path(copies.local(url))
    assert {path.name for path in folder.iterdir()} - {".objects.json"} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    bucket.put("model/tokenizer.json", b"another one")
    bucket.system.rm_file(f"{url}/model.safetensors")
    copies._fetched.cache_clear()
    capsys.readouterr()
    assert copies.local(url) == str(folder)
    assert (folder / "tokenizer.json").read_text() == "another one" and not (folder / "model.safetensors").exists()
    assert "fetching 1 files" in capsys.readouterr().out
    single = copies.local(f"{url}/tokenizer.json")
    assert Path(single).read_text() == "another one" and places.as_urls(single) == f"{url}/tokenizer.json"
    parts = {f"gguf/m-0000{n}-of-00002.gguf" for n in (1, 2)}
    for name in parts:
        bucket.put(name, b"part")
    first = Path(copies.local(f"{bucket.url}/gguf/m-00001-of-00002.gguf"))
    assert first.suffix == ".gguf" and first.with_name(first.name.replace("-00001-", "-00002-")).is_file()
    assert copies.local("runs/mine") == "runs/mine"


def test_an_object_whose_name_leaves_its_folder_is_not_fetched(bucket):
    if bucket.url.startswith("gs"):
        pytest.skip("gcsfs cannot write such a name")
    bucket.put("model/config.json", b"{}")
    bucket.put("model/../../escaped", b"")
    assert set(Store(f"{bucket.url}/model").list()) == {"config.json"}


def test_records_hold_urls_and_configs_paths(bucket):
    config = {"init_from": f"{bucket.url}/a", "distill": {"teacher": f"{bucket.url}/b"}, "data": {"input": f"{bucket.url}/c"}}
    inside = places.with_paths(config)
    assert inside["init_from"] == str(places.copy_of(f"{bucket.url}/a")) and inside["data"] == config["data"]
    assert places.with_urls(inside) == config
    assert places.as_urls(f"see {places.mirror_of(config['init_from'])}/report.html.") == f"see {bucket.url}/a/report.html."


def test_errors_are_one_line(bucket):
    gone = bucket.url.replace("bucket", "nobucket")
    for read in (Store(f"{gone}/x").list, lambda: copies.local(f"{gone}/x"), lambda: copies.local(f"{bucket.url}/none")):
        with pytest.raises(UserError, match=rf"^{bucket.url[:5]}[^\n]*$"):
            read()
