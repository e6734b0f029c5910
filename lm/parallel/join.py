"""The start of a verb: check the config, load JAX, join the other processes."""

from collections.abc import Callable

from lm.parallel.cluster import several


def join(check: Callable[[], None], trains: bool = True) -> None:
    """Call `check`, and join the other processes of this job if there are any (lm.parallel.hosts.start).

    A single process checks before JAX loads, so that an error shows at once. In a job of several, process 0 checks after all
    have joined: all end with its line, and only process 0 needs the input.
    """
    if not several():
        check()
    from lm.parallel import hosts

    hosts.start(trains)
    if several():
        hosts.from_first(check)
