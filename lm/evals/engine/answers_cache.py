"""A cache of model answers in one SQLite file, keyed by a digest of the question, so that a killed evaluation resumes.

A batch is stored in one transaction, so the file is consistent even if the process is killed (write-ahead log).
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import xxhash
from flax import nnx

from lm.errors import UserError
from lm.model.transformer import Transformer
from lm.parallel.hosts import gathered
from lm.runs.checkpoint import named, plain

LAYOUT = 1  # version of the file's layout, stored in the file
AT_ONCE = 500  # keys per query


class Answers:
    """The cache file at `path`, created if it is missing. Keys and values are bytes.

    Raises: UserError, here or later, if the file is damaged, is not a cache, or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._user_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60)
            [layout] = self._file.execute("PRAGMA user_version").fetchone()
            tables = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if layout != LAYOUT and (layout or tables):
                raise UserError(f"{path}: not a cache of answers of this version; delete it, or name another file")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
                self._file.execute(f"PRAGMA user_version = {LAYOUT}")

    def stored(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the stored values of the keys; unknown keys are left out."""
        keys, values = list(dict.fromkeys(keys)), {}
        with self._user_errors():
            for begin in range(0, len(keys), AT_ONCE):
                some = keys[begin : begin + AT_ONCE]
                marks = ",".join("?" * len(some))
                values.update(self._file.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", some))
        return values

    def add(self, values: Mapping[bytes, bytes]) -> None:
        """Store all values in one transaction. An existing key keeps its value."""
        with self._user_errors(), self._file:
            self._file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", values.items())

    def damaged(self) -> UserError:
        """Return the error to raise for a value that cannot be read."""
        return UserError(f"{self.path}: damaged, or not a cache of answers; delete it to compute its answers again")

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, read-only, disk full
            raise UserError(f"{self.path}: {error}; make sure that it is writable and no other evaluation uses it") from None
        except sqlite3.DatabaseError:
            raise self.damaged() from None
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None


def key(identity: str, kind: str, settings: Mapping, *ids: Iterable[int]) -> bytes:
    """Return the digest of a question: who is asked, its kind, the settings of the answer, and lists of token ids."""
    lists = [np.asarray(some, np.int32) for some in ids]
    question = json.dumps([identity, kind, settings, [len(some) for some in lists]], sort_keys=True)
    digest = hashlib.sha256(question.encode())
    for some in lists:
        digest.update(some.tobytes())
    return digest.digest()


def fingerprint(model: Transformer) -> str:
    """Return a digest of the model's config and all its parameters; equal wherever the parameters are stored."""
    digest = xxhash.xxh3_128(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, x in sorted(named(plain(nnx.split(model)[1])).items()):
        x = gathered(x)
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
