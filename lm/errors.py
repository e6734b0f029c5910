"""The exception that users see as one line instead of a traceback."""

import contextlib


class UserError(Exception):
    """An error that the user can fix: in a key, a path, a file's content, a mesh.

    The message is one line that says what was wrong, where, and what to do. Verbs print it and exit with code 2.
    """


@contextlib.contextmanager
def naming(key: str):
    """Replace "data.input" by `key` in a UserError of the block, because readers do not know which key the input came from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.input", key)) from error
