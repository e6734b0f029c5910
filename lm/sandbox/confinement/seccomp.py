"""A seccomp filter for confined code: a list of allowed system calls; all others are refused.

It forbids new processes and threads, sockets, signals to other processes, and changes to a file's owner, mode or place outside
a private folder. A refused call fails with "operation not permitted", so that Python raises PermissionError. Only system calls
of a foreign architecture (32-bit ones on a 64-bit machine) kill the process. Numbers are from the kernel's unistd_64.h (x86_64)
and asm-generic/unistd.h (aarch64).

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; the instructions are those of McCanne and Jacobson 1993, "The
BSD Packet Filter".
"""

import errno
import os
import struct

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the numbers below, AUDIT_ARCH value

# name: (x86_64, aarch64); None: the machine has no such call.
ALWAYS = {
    # open files, memory
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "fsync": (74, 82),
    "ftruncate": (77, 46), "fadvise64": (221, 223), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "madvise": (28, 233), "brk": (12, 214),
    # names and metadata of files, not their content
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "getdents": (78, None),
    "getdents64": (217, 61),
    # own signals, time, exit
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103),
    "pause": (34, None), "restart_syscall": (219, 128), "futex": (202, 98), "set_robust_list": (273, 99),
    "rseq": (334, 293), "sched_yield": (24, 124), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "exit": (60, 93), "exit_group": (231, 94),
    # information about itself and the machine
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getrusage": (98, 165),
    "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179), "umask": (95, 166),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168),
}  # fmt: skip
OPENING = {"openat": (257, 56)}
WRITING = {
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
}  # fmt: skip
# name: (numbers, index of the argument, its allowed values). Other values of fcntl send signals to any process (F_SETOWN,
# F_SETSIG), other values of ioctl type into terminals, and prlimit64 could set the limits of other processes.
WITH_ARGUMENT = {
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),  # F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC
    "ioctl": ((16, 29), 1, (0x5401, 0x5451)),  # TCGETS (is this a terminal?), FIOCLEX
    "prlimit64": ((302, 261), 0, (0,)),  # itself
}
CLONE3 = (435, 435)
SOCKET, IO_URING_SETUP, X32 = (41, 198), (425, 425), 0x40000000
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO, _KILL_PROCESS
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument's low half comes first


def program(machine: str, opens: bool, writes: bool) -> bytes:
    """Return the filter's instructions, 8 bytes each.

    Args:
        machine: `platform.machine()`, one of MACHINES.
        opens: allow opening files; another layer must then restrict which.
        writes: also allow creating, changing and removing files.
    """
    column, word = MACHINES[machine]
    refuse = _return(REFUSE | errno.EPERM)
    code = _load(MACHINE) + _if_equal(word, skip=1) + _return(KILL) + _load(NUMBER)
    for numbers in [*ALWAYS.values(), *(OPENING.values() if opens and writes else ()), *(WRITING.values() if writes else ())]:
        if numbers[column] is not None:
            code += _if_equal(numbers[column], otherwise=1) + _return(ALLOW)
    for numbers, argument, values in WITH_ARGUMENT.values():
        tests = _load(ARGUMENTS + 8 * argument)
        for value in values:
            tests += _if_equal(value, otherwise=1) + _return(ALLOW)
        code += _only_for(numbers[column], tests + refuse)
    if opens and not writes:
        flags = _load(ARGUMENTS + 8 * 2) + _if_any(CHANGES, otherwise=1) + refuse + _return(ALLOW)
        code += _only_for(OPENING["openat"][column], flags)
    # On ENOSYS the C library tries the older call and reports its refusal; it would misread a refusal of clone3.
    code += _only_for(CLONE3[column], _return(REFUSE | errno.ENOSYS))
    return code + refuse


def without_sockets(machine: str, family: int | None = None) -> bytes:
    """Return the instructions of a filter that allows all but new sockets, and io_uring, which makes sockets without a call.

    Sockets of one family may stay allowed. A pair of connected sockets (socketpair) leads nowhere and is allowed.
    """
    column, word = MACHINES[machine]
    refuse = _return(REFUSE | errno.EPERM)
    kept = _if_equal(family, otherwise=1) + _return(ALLOW) if family is not None else b""
    # A 64-bit program may also call by the numbers of x32, which have this bit.
    foreign = _if_any(X32, otherwise=1) + refuse if machine == "x86_64" else b""
    code = _load(MACHINE) + _if_equal(word, skip=1) + _return(KILL) + _load(NUMBER) + foreign
    code += _only_for(IO_URING_SETUP[column], refuse)
    code += _only_for(SOCKET[column], _load(ARGUMENTS) + kept + refuse)
    return code + _return(ALLOW)


def _instruction(operation: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, then, otherwise, value)


def _load(offset: int) -> bytes:
    return _instruction(0x20, offset)  # BPF_LD | BPF_W | BPF_ABS


def _if_equal(value: int, skip: int = 0, otherwise: int = 0) -> bytes:
    """Return an instruction that skips `skip` instructions if the loaded word equals `value`, else `otherwise`."""
    return _instruction(0x15, value, skip, otherwise)  # BPF_JMP | BPF_JEQ | BPF_K


def _if_any(bits: int, otherwise: int) -> bytes:
    return _instruction(0x45, bits, 0, otherwise)  # BPF_JMP | BPF_JSET | BPF_K


def _return(action: int) -> bytes:
    return _instruction(0x06, action)  # BPF_RET | BPF_K


def _only_for(number: int, block: bytes) -> bytes:
    """Return instructions that run `block`, which always returns, only for the call `number`."""
    return _if_equal(number, otherwise=len(block) // 8) + block
