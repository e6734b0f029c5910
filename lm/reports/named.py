"""The command line of what shows many runs: folders, and flags of its own."""

from pathlib import Path

from absl import flags

from lm.errors import UserError


def folders_of(given: flags.FlagValues, argv: list[str]) -> list[Path]:
    """Parse flags into `given`, and return the folders beside them. Raises: UserError."""
    given.set_gnu_getopt(True)
    try:
        folders = [Path(name) for name in given(argv)[1:]]
    except flags.Error as error:
        raise UserError(str(error)) from None
    if not folders:
        raise UserError("name a folder of runs, such as runs; --help tells what there is")
    return folders
