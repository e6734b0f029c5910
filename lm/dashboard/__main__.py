"""Show the page over many runs live in a browser: states, alerts, curves, results and differing settings.

    python -m lm.dashboard RUNS_DIR                        # all runs in the folder and below, at http://127.0.0.1:8080
    python -m lm.dashboard RUNS_DIR --port=0               # at a free port, which is printed
    python -m lm.dashboard RUNS_DIR --runs='lr-*,demo/*'   # only runs whose path below RUNS_DIR matches
    python -m lm.dashboard runs/a runs/b evals/a           # these

A run is the workdir of train.py, align.py, evaluate.py, curate.py, serve.py or lm.sweep (its trials). New runs and
new lines appear by themselves. Files are read only if they changed, and only while a browser shows the page. Nothing is
written, and no other host is asked for anything. JAX is not needed.

The page is for this machine alone. To see it from another one: ssh -L 8080:localhost:8080 HOST. --public lets all who reach the
machine read the runs.

    python -m lm.reports RUNS_DIR                          # the same page as one file, to keep or to send
"""

import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.files.untrusted import shown
from lm.reports.__main__ import folders_of


def options() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.", flag_values=values)
    flags.DEFINE_integer("port", 8080, "Port; 0: a free one.", 0, 65535, flag_values=values)
    flags.DEFINE_list("runs", [], "Shell patterns of runs, separated by commas; * also matches /.", flag_values=values)
    flags.DEFINE_float("seconds", 2.0, "Time between two looks at the files.", 0.1, 3600.0, flag_values=values)
    flags.DEFINE_bool(
        "public", False, "Listen on an address that other machines reach; all of them may read.", flag_values=values
    )
    flags.DEFINE_list("hosts", [], "More names by which a browser may call this server.", flag_values=values)
    return values


def serve(folders: list[Path], values: flags.FlagValues) -> None:
    """Answer requests until SIGTERM or Ctrl-C. Raises: UserError."""
    import uvicorn  # these take a second to import

    from lm.dashboard.app import Page, make_app
    from lm.serve.settings import bound, is_loopback, run_until_signal

    try:
        local = is_loopback(values.host)
        if not local and not values.public:
            raise UserError(f"host={values.host}: other machines reach it: add --public if all of them may read the runs")
        sock = bound(values.host, values.port)
    except UserError as error:
        raise UserError(f"--{error}".replace("--config.", "--").replace(", port=", ", --port=")) from None
    host = f"[{values.host}]" if ":" in values.host else values.host
    names = (host.lower(), "localhost", "127.0.0.1", "[::1]", *map(str.lower, values.hosts))
    app = make_app(Page(folders, values.runs, values.seconds), tuple(dict.fromkeys(names)) if local else ())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=1))
    sock.listen()
    address = f"http://{host}:{sock.getsockname()[1]}"
    print(f"{', '.join(map(shown, folders))}: {address} shows the runs; Ctrl-C ends it", flush=True)
    run_until_signal(server, sock)


def main(argv: list[str]) -> None:
    values = options()
    serve(folders_of(values, argv), values)


if __name__ == "__main__":
    sys.argv[0] = "lm.dashboard"
    cli.run(lambda: main(sys.argv), __doc__, options())
