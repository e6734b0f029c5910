"""How every program of this repository is called: flags, --config with its keys, --help, errors as one line, exit codes."""

from lm.cli.verb import ArgumentParser as ArgumentParser
from lm.cli.verb import check_folder as check_folder
from lm.cli.verb import command as command
from lm.cli.verb import define_choice as define_choice
from lm.cli.verb import define_flags as define_flags
from lm.cli.verb import fail as fail
from lm.cli.verb import guard as guard
from lm.cli.verb import help_text as help_text
from lm.cli.verb import parse as parse
from lm.cli.verb import parse_flags as parse_flags
from lm.cli.verb import run as run
from lm.cli.verb import wants_help as wants_help
