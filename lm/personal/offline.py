"""Cut this process off from the network, for good: nothing of a personal store can leave through a socket.

On Linux a seccomp filter refuses the system calls with which a process gets a socket, in all code of the process, libraries and
child processes too. Everywhere an audit hook (PEP 578) refuses sockets of Python code that could leave the machine. Neither can
be removed again.
"""

import platform
import resource
import socket
import sys

from lm.errors import UserError
from lm.sandbox.confinement import layers, seccomp

LOCAL = getattr(socket, "AF_UNIX", -1)  # sockets of this machine: a keyring is asked through one
_hooked = False


def cut_off(keeps_local: bool = False) -> None:
    """Refuse all sockets from now on. keeps_local: but those of this machine; a later call refuses them too.

    Call it before the first thread starts, because the filter holds for this thread and those that it starts. Also forbids core
    dumps, which would hold decrypted text. Raises: UserError on Linux if the filter is refused.
    """
    global _hooked
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not _hooked:
        sys.addaudithook(_refuse)
        _hooked = True
    if sys.platform == "linux" and platform.machine() in seccomp.MACHINES:
        try:
            layers.call("prctl", layers.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            layers.install(seccomp.without_sockets(platform.machine(), LOCAL if keeps_local else None))
        except OSError as error:
            raise UserError(f"the kernel refuses the seccomp filter that keeps the network out: {error.strerror}") from None


def _refuse(event: str, arguments: tuple) -> None:
    if event == "socket.__new__" and arguments[1] not in (LOCAL, -1):  # −1: of a file descriptor that is open already
        raise PermissionError(f"lm.personal opens no sockets (family {arguments[1]})")
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        raise PermissionError("lm.personal looks up no hosts")
