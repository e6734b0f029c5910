"""Questions of a StackExchange dump (Posts.xml), each with its answers.

A dump is ordered by post, so answers stand far from their questions. They are joined in a temporary SQLite file: memory is
bounded, and the disk holds the text once.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator

from data.sources.archives import html
from data.sources.archives.dumps import xml
from data.sources.source import Document, Quarantined
from data.sources.streams import Unreadable, open_stream

# From https://stackoverflow.com/help/licensing; used if a row has no ContentLicense.
_LICENCES = (("2011-04-08", "CC-BY-SA-2.5"), ("2018-05-02", "CC-BY-SA-3.0"), ("9999", "CC-BY-SA-4.0"))
_QUESTION, _ANSWER = "1", "2"
_COLUMNS = (
    "question INTEGER, is_answer INTEGER, place INTEGER, id INTEGER, accepted INTEGER, title, tags, date, licence, score, text"
)


def read(path: str, id: str) -> Iterator[Document | Quarantined]:
    """Yield a document for each question: title, question, and its answers, the accepted one first, then by score."""
    with tempfile.TemporaryDirectory(prefix="lmcraft-") as folder:
        table = sqlite3.connect(os.path.join(folder, "posts"), isolation_level=None)
        try:
            table.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536; BEGIN")
            table.execute(f"CREATE TABLE posts ({_COLUMNS}, PRIMARY KEY (question, is_answer, place, id)) WITHOUT ROWID")
            damage = yield from _store(path, table)
            yield from _joined(path, id, table)
            if damage:
                yield Quarantined(path, "after the last question", damage)
        finally:
            table.close()


def _store(path: str, table: sqlite3.Connection) -> Iterator[Quarantined]:
    """Put all posts into the table. Return the reason why the file ended early, or None."""
    with open_stream(path) as stream:
        try:
            for depth, name, row, _ in xml.elements(stream):
                if depth != 2 or name != "row" or row.get("PostTypeId") not in (_QUESTION, _ANSWER):
                    continue
                try:
                    post = _post(row)
                except Unreadable as error:
                    yield Quarantined(path, f"post {row.get('Id')}", error.reason)
                    continue
                table.execute(f"INSERT OR IGNORE INTO posts VALUES ({','.join('?' * len(post))})", post)
        except Unreadable as error:
            return error.reason
    return None


def _post(row: dict[str, str]) -> tuple:
    is_answer = row["PostTypeId"] == _ANSWER
    try:
        id, score = int(row["Id"]), int(row.get("Score", "0"))
        question = int(row["ParentId"]) if is_answer else id
        accepted = int(row.get("AcceptedAnswerId", "0"))
        if max(id, question, accepted, abs(score)) >= 1 << 62:
            raise ValueError("not a 64-bit number")
    except (KeyError, ValueError) as error:
        raise Unreadable("bad post") from error
    date = row.get("CreationDate", "")
    licence = row.get("ContentLicense", "").replace(" ", "-") or next(name for end, name in _LICENCES if date < end)
    text = html.page_of_text(row.get("Body", ""), main_content=False).text
    tags = " ".join(re.findall(r"[^<>|]+", row.get("Tags", "")))
    return question, int(is_answer), -score, id, accepted, row.get("Title", ""), tags, date, licence, score, text


def _joined(path: str, id: str, table: sqlite3.Connection) -> Iterator[Document | Quarantined]:
    site = _site(path)
    posts: list[tuple] = []
    for post in table.execute("SELECT * FROM posts ORDER BY question, is_answer, place, id"):
        if posts and post[0] != posts[0][0]:
            yield _thread(posts, path, id, site)
            posts = []
        posts.append(post)
    if posts:
        yield _thread(posts, path, id, site)


def _thread(posts: list[tuple], path: str, id: str, site: str | None) -> Document | Quarantined:
    number, is_answer, _, _, accepted, title, tags, date, licence, score, text = posts[0]
    if is_answer:
        return Quarantined(path, f"post {posts[0][3]}", "answers without their question")
    answers = sorted(posts[1:], key=lambda post: post[3] != accepted)  # stable: the others stay ordered by score
    metadata = {"title": title, "tags": tags, "score": str(score), "answers": str(len(answers)), "site": site or ""}
    licences = sorted({post[8] for post in posts})
    if len(licences) > 1:
        metadata["licences"] = " ".join(licences)
    return Document(
        f"{id}#{number}",
        "\n\n".join(part for part in (title, text, *(post[-1] for post in answers)) if part),
        path,
        licence,
        url=f"https://{site}/q/{number}" if site else None,
        date=date or None,
        metadata={key: value for key, value in metadata.items() if value},
    )


def _site(path: str) -> str | None:
    """Return the site's domain from the name of the dump's folder or file: cooking.stackexchange.com/Posts.xml."""
    folder, name = os.path.split(os.path.abspath(path))
    for part in (os.path.basename(folder), name):
        found = re.match(r"([a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|net|org))(?:-Posts|-posts)?(?:\.xml.*)?$", part)
        if found:
            return found.group(1).removesuffix("-Posts").removesuffix("-posts")
    return None
