"""The start of a verb: checks, then JAX, then all processes of the job together."""

from collections.abc import Callable

from lm.parallel.cluster import several


def join(check: Callable[[], None], trains: bool = True) -> None:
    """Call `check`, and join the other processes of this job if there are any (lm.parallel.hosts.start).

    A process by itself checks before JAX loads, so that its error comes at once. Of several, process 0 checks for all after
    they have met: all end with its line, and only process 0 needs the input.
    """
    if not several():
        check()
    from lm.parallel import hosts

    hosts.start(trains)
    if several():
        hosts.from_first(check)
