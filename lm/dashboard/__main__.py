"""Watch many runs in a browser while they go on: curves, comparison, alerts, samples, checkpoints and goodput.

    python -m lm.dashboard RUNS_DIR                        # all runs in the folder and below, at http://127.0.0.1:8080
    python -m lm.dashboard RUNS_DIR --port=0               # at a free port, which is printed
    python -m lm.dashboard RUNS_DIR --runs='lr-*,demo/*'   # only runs whose path below RUNS_DIR matches
    python -m lm.dashboard runs/a runs/b evals/a           # these

A run is the workdir of train.py, align.py, evaluate.py, curate.py, serve.py, lm.sweep (its trials) or lm.doremi. New runs and
new lines appear by themselves. Only what was appended to a file is read, and only while a browser shows the page. Nothing is
written, and no other host is asked for anything. JAX is not needed.

The page is for this machine alone. To see it from another one: ssh -L 8080:localhost:8080 HOST. --public lets all who reach the
machine read the runs.

    python -m lm.reports RUNS_DIR                          # the same runs as one file, to keep or to send
"""

import signal
import socket
import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.files.untrusted import shown
from lm.reports.named import folders_of


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


def main(argv: list[str]) -> None:
    given = options()
    folders = folders_of(given, argv)
    for folder in folders:
        if not folder.is_dir():
            what = "a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"{folder}: {what}; name folders of runs")
    serve(folders, given)


def serve(folders: list[Path], given: flags.FlagValues) -> None:
    """Answer requests until SIGTERM or Ctrl-C. Raises: UserError."""
    import uvicorn  # these take a second to import

    from lm.dashboard.app import make_app
    from lm.dashboard.store import Store
    from lm.serve.settings import bound, is_loopback

    try:
        local = is_loopback(given.host)
        if not local and not given.public:
            raise UserError(f"host={given.host}: other machines reach it: add --public if all of them may read the runs")
        sock = bound(given.host, given.port)
    except UserError as error:
        raise UserError(f"--{error}".replace("--config.", "--").replace(", port=", ", --port=")) from None
    host = f"[{given.host}]" if ":" in given.host else given.host
    known = (host.lower(), "localhost", "127.0.0.1", "[::1]", *map(str.lower, given.hosts))
    names = tuple(dict.fromkeys(known)) if local else ()
    store = Store(folders, given.runs, given.seconds)
    app = make_app(store, names)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=1))
    # uvicorn raises the signal again when it is done; the exit code is then 0.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    sock.listen()
    store.start()
    print(f"{', '.join(map(shown, folders))}: http://{host}:{port_of(sock)} shows the runs; Ctrl-C ends it", flush=True)
    try:
        server.run([sock])
    finally:
        store.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def port_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


if __name__ == "__main__":
    sys.argv[0] = "lm.dashboard"
    if cli.wants_help(sys.argv):
        print(f"{__doc__}\n{options().main_module_help()}")
    else:
        cli.guard(lambda: main(sys.argv))
