"""The one exception that is shown to a user as a line instead of a traceback."""

import contextlib


class UserError(Exception):
    """Something the user can mend: a key, a path, a file's content, a mesh.

    The message is one line that says what was wrong, where, and what to do. Verbs print it and exit with
    code 2; library callers catch it like any exception.
    """


@contextlib.contextmanager
def naming(key: str):
    """Name `key` in a UserError of the block. Readers of input call it data.input, whichever key it came from."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("data.input", key)) from error
