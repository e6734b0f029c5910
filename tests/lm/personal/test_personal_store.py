"""The store on disk: what it keeps, what others can read of it, and what becomes of it when the process is killed."""

import shutil
import signal
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.personal import items
from lm.personal.key import HEADER, Unreadable, padme, seal, unseal
from lm.personal.store import VECTORS, Gone, Store, open_store, wipe
from tests.lm.personal.stores import PASSPHRASE, child, everything_on_disk, made

KEY = bytes(range(32))


def notes(*texts: str) -> list[items.Item]:
    return [items.note(text)._replace(time=0) for text in texts]


def test_a_sealed_file_opens_only_whole_with_its_key_and_purpose():
    content = b"something secret" * 20
    one, other = seal(KEY, "segment a", content), seal(KEY, "segment a", content)
    assert unseal(KEY, "segment a", one) == content and one != other and b"secret" not in one
    for wrong in (one[:-1], one + b"\0", bytes([one[0] ^ 1]) + one[1:], b"", one[:30]):
        with pytest.raises(Unreadable):
            unseal(KEY, "segment a", wrong)
    for n in range(len(HEADER), len(one), 7):
        changed = bytearray(one)
        changed[n] ^= 1
        with pytest.raises(Unreadable):
            unseal(KEY, "segment a", bytes(changed))
    for key, purpose in ((KEY[::-1], "segment a"), (KEY, "segment b")):
        with pytest.raises(Unreadable):
            unseal(key, purpose, one)


def test_the_padding_hides_most_of_the_length():
    assert [padme(n) for n in (0, 1, 9, 100, 1000)] == [0, 1, 10, 104, 1024]  # as in the paper's algorithm
    assert all(n <= padme(n) <= 1.12 * n for n in range(10, 5000))
    assert len({padme(n) for n in range(1 << 16, 1 << 17)}) <= 33


def test_items_come_back_in_their_order_and_once(tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    first = notes("alpha", "beta")
    exchange = items.exchange([{"role": "user", "content": "a\n\u2028b"}, {"role": "assistant", "content": "ü"}], "here")
    assert store.add(first) == first
    assert store.add([exchange, first[0], *notes("alpha")]) == [exchange]
    again = open_store(tmp_path / "home")
    assert again.items() == [*first, exchange] and again.ids() == [item.id for item in again.items()]


def test_many_small_additions_are_joined(tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    for n in range(60):
        store.add(notes(f"note {n}"))
    assert [item.text for item in store.items()] == [f"note {n}" for n in range(60)]
    assert len(store.segments()) < 30 and len(list((tmp_path / "home").glob("*.sealed"))) == len(store.segments())


def test_nothing_is_readable_without_the_key(tmp_path, monkeypatch):
    home = tmp_path / "home"
    store = made(home, monkeypatch)
    letter = tmp_path / "Zanzibar.txt"
    letter.write_text("Quetzalcoatl wrote this letter.\n" * 50)
    store.add([*notes("the password is xylophone"), *items.from_path(letter)])
    store.put("adapter", b"xylophone weights", store.ids(), {"said": "xylophone"})
    store.set(model="/models/xylophone")
    disk = everything_on_disk(home)
    for word in (b"xylophone", b"Quetzalcoatl", b"Zanzibar", b"adapter", store.ids()[0].encode(), PASSPHRASE.encode()):
        assert word not in disk
    assert home.stat().st_mode & 0o077 == 0


def test_a_wrong_key_and_damage_are_told_in_one_line(tmp_path, monkeypatch):
    home = tmp_path / "home"
    made(home, monkeypatch).add(notes("alpha"))
    monkeypatch.setenv("LMCRAFT_PASSPHRASE", PASSPHRASE + "x")
    with pytest.raises(UserError, match="wrong key for .*: give the passphrase"):
        open_store(home)
    monkeypatch.setenv("LMCRAFT_PASSPHRASE", PASSPHRASE)
    [segment] = home.glob("*.sealed")
    for name, words in ((segment.name, "was changed"), ("manifest", "was changed"), ("key.json", "damaged|wrong key")):
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(home, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            open_store(copy).items()
    (home / "manifest").unlink()
    with pytest.raises(UserError, match="manifest: No such file"):
        open_store(home)
    (home / "key.json").unlink()
    with pytest.raises(UserError, match="key.json is missing: put it back"):
        open_store(home, create=True)
    assert segment.exists()


def test_files_of_one_store_cannot_be_exchanged(tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    store.add(notes("alpha"))
    store.add(notes("beta"))
    one, other = (tmp_path / "home" / file for file, _ in store.segments())
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)
    with pytest.raises(UserError, match="was changed"):
        store.items()


def test_forgetting_removes_an_item_and_all_that_was_made_of_it(tmp_path, monkeypatch):
    store = made(tmp_path / "home", monkeypatch)
    a, b, c = store.add(notes("alpha", "beta", "gamma"))
    [(file, _)] = store.segments()
    store.put(f"{VECTORS}{file}", b"of all", store.ids(), {})
    store.put("adapter", b"of all", [a.id, b.id, c.id], {})
    store.put("training", b"of two", [a.id, c.id], {})
    assert store.forget([b.id])
    assert store.items() == [a, c] and store.blob("adapter") is None and store.blob("training") == (b"of two", {})
    [(file, _)] = store.segments()
    assert store.blob(f"{VECTORS}{file}") is None
    assert len(list((tmp_path / "home").glob("*.sealed"))) == 2
    with pytest.raises(Gone):
        store.put("adapter", b"late", [a.id, b.id], {})
    with pytest.raises(UserError, match="no item"):
        store.forget([b.id])
    assert store.forget([a.id, c.id]) and store.items() == []


CHANGES = """
import os, signal, sys
from pathlib import Path
from lm.personal.items import note
from lm.personal.store import Store
key = bytes.fromhex(sys.argv[1])

def changed(home, moment):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(home) in str(arguments[0]):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    store = Store(home, key)
    for n in range(3):
        [item] = store.add([note(f"acknowledged {n}")._replace(time=0)])
        print("added", item.id, flush=True)
        store.put("adapter", b"adapter %d" % n, store.ids(), {"n": n})
        print("adapter", n, flush=True)
    first = store.ids()[0]
    store.forget([first])
    print("forgot", first, flush=True)
    print("moments", seen, flush=True)

for line in sys.stdin:  # a forked process for each
    home, moment = line.split()
    if child := os.fork():
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        changed(Path(home), int(moment))
        os._exit(0)
"""


def test_a_kill_at_any_of_twenty_moments_loses_nothing(tmp_path, monkeypatch):
    """A process kills itself before an operation on a file of the store; twenty such moments are spread over its life."""
    begun = made(tmp_path / "begun", monkeypatch)
    begun.add(notes("there before"))
    key = begun._key.hex()

    def ended(moments: list[int]) -> dict[int, tuple[Path, list[list[str]]]]:
        """The store after each, and the words of each line that its process said, of which the last is its exit status."""
        homes = {moment: tmp_path / f"home{moment}" for moment in moments}
        for home in homes.values():
            shutil.copytree(tmp_path / "begun", home)
        done = child(CHANGES, key, input="".join(f"{home} {moment}\n" for moment, home in homes.items()))
        assert done.returncode == 0, done.stderr
        said, found = [line.split() for line in done.stdout.splitlines()], {}
        for moment, home in homes.items():
            end = next(n for n, (what, _) in enumerate(said) if what == "ended")
            found[moment], said = (home, said[: end + 1]), said[end + 1 :]
        return found

    [[_, [*_, [_, count], whole]]] = ended([0]).values()
    assert whole == ["ended", "0"]
    moments = sorted({1 + n * (int(count) - 1) // 19 for n in range(20)})
    assert len(moments) == 20
    for home, (*said, end) in ended(moments).values():
        assert end == ["ended", str(-signal.SIGKILL)]
        store = Store(home, bytes.fromhex(key))
        there = store.ids()
        gone = {name for what, name in said if what == "forgot"}
        added = ["there before", *(f"acknowledged {n}" for n in range(3))]
        assert [item.text for item in store.items()] in [added[n:m] for m in range(1, 5) for n in (0, 1)]
        acknowledged = {name for what, name in said if what == "added"}
        assert acknowledged - gone - set(begun.ids()) <= set(there) and not gone & set(there)
        adapters = [int(name) for what, name in said if what == "adapter"]
        if adapters and begun.ids()[0] in there:
            content, about = store.blob("adapter")
            assert about["n"] >= adapters[-1] and content == b"adapter %d" % about["n"]
        assert b"acknowledged" not in everything_on_disk(home)
        store.add(notes("afterwards"))
        named = {file for file, _ in store.segments()}
        left = {path.name for path in home.iterdir()} - named - {"key.json", "manifest", ".lock"}
        assert len(left) == (store.blob("adapter") is not None)


def test_a_kill_while_the_store_is_made_leaves_room_for_a_new_one(tmp_path, monkeypatch):
    code = """
import os, signal, sys
from pathlib import Path
from lm.personal.store import open_store
def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
open_store(Path(sys.argv[1]), create=True)
"""
    for name in ("manifest", "key.json"):
        home = tmp_path / name
        assert child(code, home, name, LMCRAFT_PASSPHRASE=PASSPHRASE).returncode == -signal.SIGKILL
        assert made(home, monkeypatch).items() == []


def test_wiping_leaves_nothing_of_the_store_and_all_of_others(tmp_path, monkeypatch):
    home = tmp_path / "home"
    made(home, monkeypatch).add(notes("alpha"))
    (home / "mine.txt").write_text("not of the store")
    wipe(home)
    assert [path.name for path in home.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="no store: name a new folder"):
        open_store(home, create=True)


def test_the_keyring_holds_the_key(tmp_path):
    """A keyring of the test, which keeps its secrets in a file, stands for the one of a desktop."""
    (tmp_path / "filed.py").write_text(
        "import json, os, keyring.backend, keyring.errors\n"
        "class Filed(keyring.backend.KeyringBackend):\n"
        "    priority = 1\n"
        "    file = os.environ['FILED']\n"
        "    def _all(self): return json.load(open(self.file)) if os.path.exists(self.file) else {}\n"
        "    def _save(self, found): json.dump(found, open(self.file, 'w'))\n"
        "    def get_password(self, service, name): return self._all().get(service + name)\n"
        "    def set_password(self, service, name, value): self._save(self._all() | {service + name: value})\n"
        "    def delete_password(self, service, name):\n"
        "        found = self._all(); found.pop(service + name); self._save(found)\n"
    )
    keyring = {"FILED": str(tmp_path / "secrets"), "PYTHON_KEYRING_BACKEND": "filed.Filed", "PYTHONPATH": str(tmp_path)}

    def run(code: str, **variables: str):
        begin = "import sys; from pathlib import Path; from lm.personal import store, items; home = Path(sys.argv[1]); "
        return child(begin + code, tmp_path / "home", **variables)

    add = "store.open_store(home, create=True, in_keyring=True).add([items.note('alpha')])"
    show = "print([item.text for item in store.open_store(home).items()])"
    assert run(add, **keyring).returncode == 0
    assert run(show, **keyring).stdout == "['alpha']\n"
    other = keyring | {"FILED": str(tmp_path / "other")}
    assert "the keyring has no key" in run(show, **other).stderr
    assert run("store.wipe(home)", **keyring).returncode == 0 and (tmp_path / "secrets").read_text() == "{}"
    assert not (tmp_path / "home").exists()
