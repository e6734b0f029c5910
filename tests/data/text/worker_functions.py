"""What the tests of workers let them do. A worker imports this file, so it imports little."""

import os
import signal

from lm.errors import UserError


def power(base, item):
    return os.getpid(), base**item


def picky(state, item):
    if item == state:
        raise UserError(f"item {item} is no item")
    return item


def deadly(state, item):
    if item == state:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def meeting(pipe, item):
    """Item 0 waits for item 7."""
    if item in (0, 7):
        os.close(os.open(pipe, os.O_WRONLY if item else os.O_RDONLY))
    return item
