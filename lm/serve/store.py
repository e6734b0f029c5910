"""The store of sampled exchanges, feedback and alerts: one SQLite file, written by one thread.

    python -m lm.serve.store show   --store=DIR/exchanges.sqlite
    python -m lm.serve.store delete --store=DIR/exchanges.sqlite --user=NAME

Personal data is masked (data/filters/pii) before a text is given to SQLite. A user's name is stored as a keyed hash, by which
`delete` finds what they said. `delete` works beside a running server; what was deleted is overwritten (secure_delete), and the
server's later writes of older exchanges of that user are refused.

The writer commits what has gathered in its queue in one transaction, in WAL mode with synchronous=FULL. A future of `feedback`
is done only after that commit, so feedback that was acknowledged survives `kill -9` and a power cut.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import queue
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.filters.pii.masking import mask_pii
from lm import cli
from lm.errors import UserError
from lm.files.saving import plain

LAYOUT = 1
TABLES = """
CREATE TABLE exchanges (id TEXT PRIMARY KEY, time REAL, checkpoint TEXT, adapter TEXT, user TEXT, messages TEXT, answers TEXT,
  finish TEXT, measures TEXT, decisions TEXT, flagged INTEGER, bytes INTEGER);
CREATE INDEX exchanges_time ON exchanges (time);
CREATE INDEX exchanges_user ON exchanges (user);
CREATE TABLE feedback (number INTEGER PRIMARY KEY, exchange TEXT, choice INTEGER, time REAL, user TEXT, rating INTEGER,
  comment TEXT, correction TEXT);
CREATE INDEX feedback_exchange ON feedback (exchange);
CREATE TABLE alerts (number INTEGER PRIMARY KEY, time REAL, checkpoint TEXT, adapter TEXT, stream TEXT, text TEXT, detail TEXT);
CREATE TABLE deletions (user TEXT, time REAL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
"""
QUEUE = 4096  # writes that wait; feedback waits for room, exchanges are dropped and counted
CLEAN_EVERY = 3600.0  # seconds between looks at what is too old or too much


class Exchange(NamedTuple):
    """A request and its answers. time: seconds since 1970. user: a name, or "". messages: {role, content}, content as text.

    answers: one a choice. measures: {name: value}. decisions: of the guardrails, as dicts. flagged: whether to look at it.
    """

    id: str
    time: float
    checkpoint: str
    adapter: str
    user: str
    messages: Sequence[Mapping[str, Any]]
    answers: Sequence[str]
    finish: str = ""
    measures: Mapping[str, Any] = {}
    decisions: Sequence[Mapping[str, Any]] = ()
    flagged: bool = False


class Feedback(NamedTuple):
    """A person's rating of an answer: +1 or −1, with a comment and a better answer if they gave them."""

    exchange: str
    rating: int
    choice: int = 0
    user: str = ""
    comment: str = ""
    correction: str = ""


class Store:
    """The file and its writer. All methods may be called by any thread.

    written, dropped: exchanges since the start. bytes: of the file, as of the last commit.
    """

    def __init__(self, path: str | Path, days: float = 30.0, megabytes: float = 1000.0):
        """days, megabytes: older and, if the file grows larger, oldest exchanges go, with their feedback; 0: no limit.

        Raises: UserError: the file cannot be opened, or is another program's.
        """
        self.path, self.days, self.megabytes = Path(path), days, megabytes
        self.written = self.dropped = self.bytes = 0
        self._queue: queue.Queue[tuple[Callable, concurrent.futures.Future] | None] = queue.Queue(QUEUE)
        self._file = connect(self.path, create=True)  # of the writer's thread from now on
        self._salt = salt(self._file)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    def exchange(self, exchange: Exchange) -> None:
        """Store an exchange soon, unless the queue is full."""
        try:
            self._queue.put_nowait((lambda file: self._insert(file, exchange), concurrent.futures.Future()))
        except queue.Full:
            self.dropped += 1

    def feedback(self, feedback: Feedback, about: Exchange | None = None) -> concurrent.futures.Future:
        """Store feedback, and the exchange that it is about if that is given and not stored yet.

        Returns: a future that is done when it is on disk, with (number of the rating, checkpoint and adapter that it is about).
        It raises LookupError without such an exchange, and sqlite3.Error if the file cannot be written.
        """

        def insert(file: sqlite3.Connection) -> tuple[int, str, str]:
            if about is not None:
                self._insert(file, about)
            known = file.execute("SELECT checkpoint, adapter FROM exchanges WHERE id = ?", (feedback.exchange,)).fetchone()
            if known is None:
                raise LookupError(feedback.exchange)
            comment, correction = masked([feedback.comment, feedback.correction])
            row = (feedback.exchange, feedback.choice, time.time(), hashed(self._salt, feedback.user), feedback.rating)
            done = file.execute(
                "INSERT INTO feedback (exchange, choice, time, user, rating, comment, correction) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, comment, correction),
            )
            return done.lastrowid, *known

        return self._ask(insert)

    def alert(self, alert: Mapping[str, Any]) -> concurrent.futures.Future:
        """Store an alert (lm/serve/watch/behaviour.py) with its fields."""
        row = (*(alert[key] for key in ("time", "checkpoint", "adapter", "stream", "text")), _json(alert["detail"]))
        insert = "INSERT INTO alerts (time, checkpoint, adapter, stream, text, detail) VALUES (?, ?, ?, ?, ?, ?)"
        return self._ask(lambda file: file.execute(insert, row))

    def flush(self) -> None:
        """Wait until everything that was given before is on disk."""
        self._ask(lambda file: None).result()

    def close(self) -> None:
        """Write what waits, and end the writer."""
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(None)
            self._thread.join()

    def _ask(self, work: Callable[[sqlite3.Connection], Any]) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        if self._closed.is_set():
            future.set_exception(sqlite3.ProgrammingError("the store is closed"))
        else:
            self._queue.put((work, future))
        return future

    def _write(self) -> None:
        file, due, ended = self._file, time.monotonic(), False
        while not ended:
            batch = self._waiting(due)
            ended = None in batch
            if time.monotonic() >= due:
                due = time.monotonic() + CLEAN_EVERY
                batch.append((lambda file: clean(file, self.days, self.megabytes), concurrent.futures.Future()))
            self._commit(file, [one for one in batch if one is not None])
        file.close()

    def _waiting(self, until: float) -> list:
        """Return all that waits in the queue; if nothing does, wait for it until a time."""
        batch = []
        try:
            batch.append(self._queue.get(timeout=max(0.0, until - time.monotonic())))
            while True:
                batch.append(self._queue.get_nowait())
        except queue.Empty:
            return batch

    def _commit(self, file: sqlite3.Connection, batch: Sequence[tuple[Callable, concurrent.futures.Future]]) -> None:
        """Do all of a batch in one transaction, and then complete its futures. What fails alone fails alone."""
        answers: list[tuple[concurrent.futures.Future, Any, Exception | None]] = []
        try:
            file.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                file.execute("SAVEPOINT one")
                try:
                    answers.append((future, work(file), None))
                except (sqlite3.Error, LookupError) as error:
                    file.execute("ROLLBACK TO one")
                    answers.append((future, None, error))
                file.execute("RELEASE one")
            file.execute("COMMIT")
            self.bytes = size(file)
        except sqlite3.Error as error:  # locked for long, or the disk is full
            if file.in_transaction:
                file.execute("ROLLBACK")
            answers = [(future, None, error) for _, future in batch]
        for future, answer, error in answers:
            future.set_result(answer) if error is None else future.set_exception(error)

    def _insert(self, file: sqlite3.Connection, one: Exchange) -> None:
        user = hashed(self._salt, one.user)
        if user and file.execute("SELECT 1 FROM deletions WHERE user = ? AND time >= ?", (user, one.time)).fetchone():
            return
        messages = masked([str(message.get("content") or "") for message in one.messages])
        said = [{"role": str(m.get("role")), "content": text} for m, text in zip(one.messages, messages, strict=True)]
        texts = _json(said), _json(masked(list(one.answers))), _json(one.measures), _json(one.decisions)
        told = one.finish, texts[2], texts[3], int(one.flagged), sum(map(len, texts))
        row = one.id, one.time, one.checkpoint, one.adapter, user, texts[0], texts[1], *told
        done = file.execute(f"INSERT OR IGNORE INTO exchanges VALUES ({', '.join('?' * len(row))})", row)
        self.written += done.rowcount


def connect(path: str | Path, create: bool = False) -> sqlite3.Connection:
    """Open a store; create: make it if it is not there. Raises: UserError."""
    path = Path(path)
    if not create and not path.is_file():
        raise UserError(f"--store={path}: no such file; name the exchanges.sqlite of a server")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if create and not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # others of this machine have no business in it
        file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        [layout] = file.execute("PRAGMA user_version").fetchone()
        if layout != LAYOUT:
            if not create or layout or file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise UserError(f"{path}: not a store of exchanges of this version; name another file")
            file.execute("PRAGMA auto_vacuum = INCREMENTAL")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.execute("PRAGMA secure_delete = ON")
        if layout != LAYOUT:
            file.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {LAYOUT}; COMMIT;")
        return file
    except (sqlite3.Error, OSError) as error:
        raise UserError(f"{path}: {error}; name a file that can be written, on a local disk") from error


def salt(file: sqlite3.Connection) -> bytes:
    """Return the key of the users' hashes, which is random and made once."""
    file.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (secrets.token_hex(16),))
    return bytes.fromhex(file.execute("SELECT value FROM meta WHERE key = 'salt'").fetchone()[0])


def hashed(key: bytes, user: str) -> str:
    return hashlib.blake2b(user.encode("utf-8", "replace"), key=key, digest_size=16).hexdigest() if user else ""


def masked(texts: Sequence[str]) -> list[str]:
    """Return texts that SQLite can hold, without personal data."""
    return mask_pii([text.encode("utf-8", "replace").decode() for text in texts])[0]


def forget(file: sqlite3.Connection, user: str) -> int:
    """Delete all exchanges and feedback of a user, inside a transaction of the caller. Returns how many."""
    name = hashed(salt(file), user)
    if not name:
        raise UserError("--user is empty; name the user whose exchanges are to be deleted")
    file.execute("INSERT INTO deletions VALUES (?, ?)", (name, time.time()))
    of_theirs = "DELETE FROM feedback WHERE user = ? OR exchange IN (SELECT id FROM exchanges WHERE user = ?)"
    count = file.execute(of_theirs, (name, name)).rowcount
    return count + file.execute("DELETE FROM exchanges WHERE user = ?", (name,)).rowcount


def clean(file: sqlite3.Connection, days: float, megabytes: float) -> int:
    """Delete what is older than `days`, and the oldest until the file holds `megabytes`. Returns how many exchanges went."""
    gone = 0
    if days:
        gone += file.execute("DELETE FROM exchanges WHERE time < ?", (time.time() - days * 86400,)).rowcount
    while megabytes and size(file) > megabytes * 1e6:
        [many] = file.execute("SELECT 1 + count(*) / 20 FROM exchanges").fetchone()
        oldest = "DELETE FROM exchanges WHERE id IN (SELECT id FROM exchanges ORDER BY time LIMIT ?)"
        count = file.execute(oldest, (many,)).rowcount
        if not count:
            break
        gone += count
        file.execute("DELETE FROM feedback WHERE exchange NOT IN (SELECT id FROM exchanges)")
    file.execute("DELETE FROM feedback WHERE exchange NOT IN (SELECT id FROM exchanges)")
    file.execute("PRAGMA incremental_vacuum").fetchall()
    return gone


def size(file: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use."""
    pages, free, page = (file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * page


def read(path: str | Path, where: str = "1", values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
    """Yield exchanges, oldest first, with their columns; JSON columns are decoded, and `feedback` is a list of dicts.

    where: an SQL condition on the exchanges' columns, with ? for `values`.
    """
    file = connect(path)
    file.row_factory = sqlite3.Row
    try:
        for row in file.execute(f"SELECT * FROM exchanges WHERE {where} ORDER BY time, id", values):
            found = dict(row) | {key: json.loads(row[key]) for key in ("messages", "answers", "measures", "decisions")}
            ratings = file.execute("SELECT * FROM feedback WHERE exchange = ? ORDER BY number", (row["id"],))
            yield found | {"feedback": [dict(rating) for rating in ratings]}
    finally:
        file.close()


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def main(arguments: Sequence[str]) -> None:
    parser = cli.ArgumentParser(
        prog="python -m lm.serve.store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["show", "delete"])
    parser.add_argument("--store", required=True, help="exchanges.sqlite of a server")
    parser.add_argument("--user", default="", help="delete: whose exchanges and feedback")
    given = parser.parse_args(arguments)
    file = connect(given.store)
    if given.command == "delete":
        file.execute("BEGIN IMMEDIATE")
        count = forget(file, given.user)
        file.execute("COMMIT")
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # or the log keeps the old pages
        print(f"{given.store}: deleted {count} exchanges and ratings")
        return
    for table in ("exchanges", "feedback", "alerts"):
        print(f"{table}: {file.execute(f'SELECT count(*) FROM {table}').fetchone()[0]}")
    print(f"bytes: {size(file)}")


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv[1:])
