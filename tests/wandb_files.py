"""Read the file that W&B writes offline, to know which steps it holds.

The file is a LevelDB log of protobuf records: a header of 7 bytes, then blocks of 32 KiB. A block holds chunks of (checksum 4
bytes, length 2 bytes, type 1 byte, data), little-endian. A record is one chunk (type 1), or a first, middle and last one (types
2, 3, 4). Fewer than 7 bytes at the end of a block are unused. Source: wandb's core/internal/transactionlog and
https://github.com/google/leveldb/blob/main/doc/log_format.md.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32 * 1024, 7
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file, up to the first that a killed process left incomplete."""
    data = path.read_bytes()
    if not data.startswith(b":W&B"):
        return
    at, record = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        chunk = data[at + HEADER : at + HEADER + size]
        if not WHOLE <= kind <= LAST or len(chunk) < size:
            return
        record = chunk if kind in (WHOLE, FIRST) else record + chunk
        if kind in (WHOLE, LAST):
            yield record
        at += HEADER + size


def history(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged values of a file by name, with `_step`."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for data in records(path):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            values = {"_step": record.history.step.num}
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                kind = item.WhichOneof("value") or "value_json"
                values[name] = json.loads(item.value_json) if kind == "value_json" else getattr(item, kind)
            yield values
