"""The layers that a process puts around itself before it runs a stranger's code. None can be taken off again.

On Linux the seccomp filter must be there, or nothing is run. What else a kernel or a container does not give is left out and
not reported as active, and then less is allowed: without Landlock, which says what may be opened, nothing can be opened at
all, and without a private file system of bounded size, nothing can be written.

Source: Linux manual pages landlock(7), user_namespaces(7), capabilities(7), prctl(2), setrlimit(2).
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Collection, Sequence

from . import seccomp

FOLDER_MIB, FILES = 16, 1024  # what a private folder holds at most
OPEN_FILES = 64

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same number on every machine
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
FILE_RIGHTS = (13, 14, 15, 15, 16)  # how many there are, by version of Landlock from 1 on
SPECIAL_FILES = sum(1 << bit for bit in (0, 6, 9, 10, 11, 12, 15))  # execute; make devices, sockets, pipes, links; ioctl
NET_RIGHTS, SCOPES = 0b11, 0b11  # TCP bind and connect, from version 4; abstract sockets and signals, from 6
LANDLOCK_WRITES = 3  # the version from which on a file cannot be emptied by opening it


LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> int:
    """A function of the C library. Raises: OSError where it answers with a negative number."""
    if not hasattr(LIBC, name):
        raise OSError(errno.ENOSYS, name)
    result = getattr(LIBC, name)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def enter_namespaces() -> None:
    """Users, network and inter-process communication of its own: no power over what is outside, even as root."""
    user, group = os.geteuid(), os.getegid()
    apart = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
    try:
        call("unshare", apart | CLONE_NEWUSER)
    except OSError:
        call("unshare", apart)  # root may, even where users of one's own are forbidden
        return
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)


def die_with(parent: int) -> None:
    """This process is killed when `parent`, which started it, ends. To be called after any gain of rights, which undoes it."""
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def confine(
    folder: str, readable: Sequence[str], parent: int, *, seconds: float, memory_bytes: int, without: Collection[str] = ()
) -> list[str]:
    """Puts all layers around this process and makes `folder`, which must be empty, its current one.

    Args:
        readable: files and folders that may be read; of those that end in "/" only the names in them.
        parent: the process that started this one.
        memory_bytes: of address space, the interpreter's own included.
        without: layers to leave out, so that a test sees that the others hold.
    Returns: the names of the layers that are active.
    Raises: OSError if this is Linux and no seccomp filter can be had.
    """
    active = []

    def layer(name: str, put: Callable[[], None]) -> bool:
        if name in without:
            return False
        try:
            put()
        except OSError:
            return False
        active.append(name)
        return True

    os.chdir(folder)
    private = layer("namespaces", lambda: _private_folder(folder))
    _limits(seconds, memory_bytes, FOLDER_MIB << 20 if private else 0)
    active.append("limits")
    if sys.platform != "linux":
        return active
    layer("capabilities", _drop_capabilities)
    layer("death signal", lambda: die_with(parent))
    layer("no new privileges", _no_new_privileges)
    landlock = layer("landlock", lambda: _landlock(readable, private))
    writes = landlock and private and _landlock_version() >= LANDLOCK_WRITES
    _seccomp(landlock, writes)
    return [*active, "seccomp"]


def _private_folder(folder: str) -> None:
    """A file system in memory over `folder`, which no one else sees and which ends with this process."""
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    options = f"size={FOLDER_MIB}m,nr_inodes={FILES},mode=700".encode()
    call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    os.chdir(folder)


def _limits(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    whole = int(seconds) + 1
    limits = {
        "RLIMIT_CPU": (whole, whole + 1),
        "RLIMIT_AS": (memory_bytes,) * 2,
        "RLIMIT_FSIZE": (file_bytes,) * 2,
        "RLIMIT_NOFILE": (OPEN_FILES,) * 2,
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }
    for name, pair in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), pair)
        except (AttributeError, ValueError, OSError):
            pass  # macOS lacks some, and refuses to bound the address space


def _drop_capabilities() -> None:
    call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))


def _no_new_privileges() -> None:
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _seccomp(opens: bool, writes: bool) -> None:
    if platform.machine() not in seccomp.MACHINES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    instructions = seccomp.program(platform.machine(), opens, writes)
    kept = ctypes.create_string_buffer(instructions)
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(kept))  # struct sock_fprog
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def _landlock_version() -> int:
    return call("syscall", LANDLOCK_CREATE, None, 0, 1)


def _landlock(readable: Sequence[str], private: bool) -> None:
    """Only `readable` can be opened, to be read, and what lies in the current folder, to be written too if that is private."""
    version = _landlock_version()
    handled = (1 << FILE_RIGHTS[min(version, len(FILE_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=QQQ", handled, NET_RIGHTS, SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = call("syscall", LANDLOCK_CREATE, attributes, len(attributes), 0)
    try:
        for path in readable:
            folder = os.path.isdir(path)
            rights = READ_FOLDER if path.endswith("/") else READ_FILE | READ_FOLDER * folder
            _allow(rules, path, rights)
        _allow(rules, ".", handled & ~SPECIAL_FILES if private else READ_FOLDER)
        call("syscall", LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        call("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, there), 0)
    finally:
        os.close(there)
