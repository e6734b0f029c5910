"""The layers with which a process confines itself before it runs untrusted code. A layer cannot be removed again.

On Linux the seccomp filter is required; without it nothing runs. Other layers that the kernel or the container lacks are left
out and not reported as active. Then less is allowed: without Landlock, which restricts the files, no file can be opened at all,
and without a private file system of limited size nothing can be written.

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

FOLDER_MIB, FILES = 16, 1024  # limits of the private folder
OPEN_FILES = 64

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # system calls, the same number on every machine
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
FILE_RIGHTS = (13, 14, 15, 15, 16)  # number of file rights, by version of Landlock from 1 on
SPECIAL_FILES = sum(1 << bit for bit in (0, 6, 9, 10, 11, 12, 15))  # execute; make devices, sockets, pipes, links; ioctl
NET_RIGHTS, SCOPES = 0b11, 0b11  # TCP bind and connect, from version 4; abstract sockets and signals, from 6
LANDLOCK_WRITES = 3  # from this version on, opening a file cannot truncate it


LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> int:
    """Call a function of the C library and return its result. Raises OSError if the result is negative."""
    if not hasattr(LIBC, name):
        raise OSError(errno.ENOSYS, name)
    result = getattr(LIBC, name)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def enter_namespaces() -> None:
    """Enter new user, network and IPC namespaces: the process has no rights outside them, even as root."""
    user, group = os.geteuid(), os.getegid()
    apart = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
    try:
        call("unshare", apart | CLONE_NEWUSER)
    except OSError:
        call("unshare", apart)  # allowed for root, even if user namespaces are forbidden
        return
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Call it after every change of credentials, which resets it."""
    call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def confine(
    folder: str, rules: int, parent: int, *, seconds: float, memory_bytes: int, without: Collection[str] = ()
) -> list[str]:
    """Apply all layers to this process and make `folder`, which must be empty, its working directory.

    Args:
        rules: of `rules_of`; closed here.
        parent: the process that started this one.
        memory_bytes: address space, including the interpreter's own.
        without: layers to leave out, to test the others.
    Returns: the names of the active layers.
    Raises: OSError if seccomp is not available on Linux.
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
    layer("capabilities", lambda: call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24)))
    layer("death signal", lambda: die_with(parent))
    layer("no new privileges", _no_new_privileges)
    landlock = layer("landlock", lambda: _landlock(rules, private))
    if rules >= 0:
        os.close(rules)
    writes = landlock and private and _landlock_version() >= LANDLOCK_WRITES
    if platform.machine() not in seccomp.MACHINES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    install(seccomp.program(platform.machine(), landlock, writes))
    return [*active, "seccomp"]


def _private_folder(folder: str) -> None:
    """Mount a private tmpfs over `folder`. Only this process sees it, and it ends with the process."""
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
            pass  # macOS lacks some limits, and rejects one on the address space


def _no_new_privileges() -> None:
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def install(instructions: bytes) -> None:
    """Put a filter of lm/sandbox/confinement/seccomp.py onto this thread and those that it starts. Raises: OSError."""
    kept = ctypes.create_string_buffer(instructions)
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(kept))  # struct sock_fprog
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def _landlock_version() -> int:
    return call("syscall", LANDLOCK_CREATE, None, 0, 1)


def rules_of(readable: Sequence[str], folders: str) -> int:
    """Return a file descriptor of Landlock's rules that all processes share; -1 if the kernel has none.

    They allow reading of `readable`, and anything below `folders`, in which each process has its own folder. A process adds a
    rule of its own, by which it writes in its folder alone. So the many rules are made once, which takes longer than all
    other layers together.

    Args:
        readable: files and folders. A folder that ends in "/" may only be listed.
    """
    try:
        handled, attributes = _handled()
        rules = call("syscall", LANDLOCK_CREATE, attributes, len(attributes), 0)
        for path in readable:
            folder = os.path.isdir(path)
            _allow(rules, path, READ_FOLDER if path.endswith("/") else READ_FILE | READ_FOLDER * folder)
        _allow(rules, folders, handled & ~SPECIAL_FILES)
    except (OSError, AttributeError):
        return -1
    return rules


def _handled() -> tuple[int, bytes]:
    """Return all rights to files that the kernel can refuse, and the attributes of rules that refuse them, and the network."""
    version = _landlock_version()
    handled = (1 << FILE_RIGHTS[min(version, len(FILE_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=QQQ", handled, NET_RIGHTS, SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    return handled, attributes


def _landlock(rules: int, private: bool) -> None:
    """Apply `rules`; and allow writing only in the current folder, if it is private, else nowhere."""
    if rules < 0:
        raise OSError(errno.ENOSYS, "landlock")
    writing = _handled()[0] & ~(READ_FILE | READ_FOLDER)
    own = call("syscall", LANDLOCK_CREATE, struct.pack("=Q", writing), 8, 0)
    try:
        if private:
            _allow(own, ".", writing & ~SPECIAL_FILES)
        call("syscall", LANDLOCK_RESTRICT, rules, 0)
        call("syscall", LANDLOCK_RESTRICT, own, 0)
    finally:
        os.close(own)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        there = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        call("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, there), 0)
    finally:
        os.close(there)
