"""The start of a verb: open a workdir in a bucket, check the config, load JAX, join the other processes."""

import gc
from collections.abc import Callable

from lm.bucket import mirror
from lm.parallel.cluster import several


def join(check: Callable[[], None], trains: bool = True) -> None:
    """Call `check`, and join the other processes of this job if there are any (lm.parallel.hosts.start).

    Before the check, the workdir's mirror is filled if it is in a bucket (lm/bucket/mirror.py). A single process checks before
    JAX loads, so that an error shows at once. In a job of several, process 0 checks after all have joined: all end with its
    line, and only process 0 needs the input.
    """

    def start() -> str | None:
        id = mirror.open_planned()
        check()
        return id

    if not several():
        start()
    from lm.parallel import hosts

    hosts.start(trains)
    gc.freeze()  # what was imported stays: looking for garbage in it takes 0.1 s
    if several():
        mirror.check_shared(hosts.from_first(start), hosts.number()[0])
