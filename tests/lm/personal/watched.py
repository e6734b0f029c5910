"""python -m tests.lm.personal.watched LOG ARGUMENTS: lm.personal in an empty network namespace, if one can be made here.

Every event of Python that has to do with a socket is written to the file LOG.
"""

import ctypes
import os
import runpy
import sys

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET of unshare(2)


def watch(path: str) -> None:
    log = open(path, "a")  # noqa: SIM115 (open until the process ends)

    def hook(event, arguments):
        if event.startswith("socket."):
            print(event, *map(str, arguments[1:]), file=log, flush=True)

    sys.addaudithook(hook)


if __name__ == "__main__":
    user, group = os.getuid(), os.getgid()
    if sys.platform == "linux" and ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK) == 0:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    watch(sys.argv[1])
    sys.argv = ["lm.personal", *sys.argv[2:]]
    runpy.run_module("lm.personal", run_name="__main__", alter_sys=True)
