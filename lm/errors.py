"""The one exception that is shown to a user as a line instead of a traceback."""


class UserError(Exception):
    """Something the user can mend: a key, a path, a file's content, a mesh.

    The message is one line that says what was wrong, where, and what to do. Verbs print it and exit with
    code 2; library callers catch it like any exception.
    """
