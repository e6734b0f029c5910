"""Images and sound in requests: what a server takes, and the threads that decode them.

A file of a stranger may cost ten seconds and 0.7 GB (data/media). So files are decoded by two threads of their own: nothing
else waits for them, and few are in memory at a time.
"""

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from data.chat.media.encoding import Towers
from data.chat.messages import Messages
from lm.config.towers import Media
from lm.errors import UserError
from lm.infer.prompts import with_files
from lm.serve.api.protocol import ApiError

THREADS = 2
WAITING = 32  # requests whose files wait for a thread; more are refused with 429
MEMORY = 2 << 30  # bytes of prepared media of all requests that are not over
RETRY = 1.0  # seconds after which a client may ask again
Found = TypeVar("Found")


class Room:
    """Threads that decode media, and the memory that prepared media may take."""

    def __init__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "media")
        self._lock = threading.RLock()  # the garbage collector may call _give_back at any time
        self._waiting = self._bytes = 0

    async def call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """Return function(*arguments) from one of the threads. Raises: ApiError."""
        if self._waiting >= WAITING:
            raise ApiError(429, "the server is busy with other images and sound", code="queue_full", retry=RETRY)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        finally:
            self._waiting -= 1

    def take(self, media: Media) -> None:
        """Count the memory of a request's media as long as they exist. Raises: ApiError if there is no room."""
        arrays = [array if array.base is None else array.base for array in media if array is not None]
        size = sum(array.nbytes for array in arrays)
        if self._bytes + size > MEMORY:
            gc.collect()  # requests that are over may still be in cycles
        with self._lock:
            if self._bytes + size > MEMORY:
                raise ApiError(429, "the server is busy: no room for more images and sound", code="queue_full", retry=RETRY)
            self._bytes += size
        for array in arrays:
            weakref.finalize(array, self._give_back, array.nbytes)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._bytes -= size


def files_of(messages: Messages, towers: Towers | None, most: int, most_bytes: int) -> Messages:
    """Return messages with the bytes of their media. most, most_bytes: media of a request, and bytes of all of them.

    Raises: ApiError for media that the model has no encoder for, that are too many or too large, or that are no data: URL.
    """
    media = [medium for message in messages for medium in message.get("media", ())]
    for medium in media:
        if towers is None or getattr(towers, medium.kind) is None:
            reads = (
                " and ".join(kind for kind in ("image", "audio") if towers and getattr(towers, kind)) or "no images or sound"
            )
            raise _refusal(f"{medium.where}: {medium.kind} for a model that reads text and {reads}; leave it out")
    for message in messages:
        if message.get("media") and message["role"] != "user":
            raise _refusal(f"{message['media'][0].where}: only messages of the user may have images and sound")
    if len(media) > most:
        raise _refusal(f"messages: {len(media)} images and sounds, and this server takes {most} in a request; send fewer")
    size = sum(len(medium.source) * 3 // 4 for medium in media if isinstance(medium.source, str))
    if size > most_bytes:
        raise _refusal(f"messages: {size:,} bytes of images and sound, and this server takes {most_bytes:,}; make them smaller")
    try:
        return with_files(messages, "messages")
    except UserError as error:
        raise _refusal(str(error)) from None


def _refusal(message: str) -> ApiError:
    return ApiError(400, message, param="messages")
