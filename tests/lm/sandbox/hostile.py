"""Code that means harm, and how it must end. Run as `python hostile.py FOLDER`, it runs them all and prints JSON.

Nothing here would hurt much if it were let through: a signal is 0 or ignored, a bomb is small, a file is in FOLDER.
"""

import json
import os
import sys
from pathlib import Path

BY_NUMBER = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "as it should be")
    print("let through")
"""
OUTSIDE = {
    "write": "open({victim!r}, 'w').write('gone')",
    "append": "open({victim!r}, 'a').write('more')",
    "empty": "import os\nos.open({victim!r}, os.O_RDONLY | os.O_TRUNC)",
    "truncate": "import os\nos.truncate({victim!r}, 0)",
    "new file": "open({folder!r} + '/new', 'x')",
    "up and away": "import os\nos.chdir('..')\nopen('new', 'x')",
    "remove": "import os\nos.remove({victim!r})",
    "rename": "import os\nos.rename({victim!r}, {folder!r} + '/new')",
    "link": "import os\nos.link({victim!r}, 'mine')\nopen('mine', 'w')",
    "symbolic link": "import os\nos.symlink({victim!r}, 'mine')\nopen('mine', 'w')",
    "new folder": "import os\nos.mkdir({folder!r} + '/new')",
    "mode": "import os\nos.chmod({victim!r}, 0o777)",
    "owner": "import os\nos.chown({victim!r}, 1, 1)",
    "times": "import os\nos.utime({victim!r})",
    "attribute": "import os\nos.setxattr({victim!r}, 'user.a', b'')",
    "read": "print(open({victim!r}).read())",
    "map": "import os, mmap\nprint(mmap.mmap(os.open({victim!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:])",
    "list": "import os\nprint(os.listdir({folder!r}))",
    "accounts": "print(open('/etc/passwd').read())",
    "environment of another": "import os\nprint(open(f'/proc/{{os.getppid()}}/environ').read())",
    "memory of another": "import os\nopen(f'/proc/{{os.getppid()}}/mem', 'r+b')",
    "its own files": "import os\nprint(os.listdir('/proc/self/fd'))",
    "device": "open('/dev/null', 'wb')",
    "shared memory": "open('/dev/shm/new', 'x')",
}
REFUSED = {
    "fork bomb": "import os\nfor _ in range(8):\n    os.fork()",
    "double fork": "import os\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        while True: pass",
    "own session": "import os\nos.setsid()",
    "own group": "import os\nos.setpgid(0, 0)",
    "spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {{}})",
    "subprocess": "import subprocess\nsubprocess.run(['touch', {victim!r}])",
    "shell": "import subprocess\nsubprocess.run('touch {folder}/new', shell=True)",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "exec of memory": "import os\nos.memfd_create('mine')",
    "internet": "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)",
    "datagrams": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "local socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "socket pair": "import socket\nsocket.socketpair()",
    "kill parent": "import os\nos.kill(os.getppid(), 0)",
    "kill group": "import os\nos.killpg(os.getpgid(os.getppid()), 0)",
    "kill own group": "import os\nos.kill(0, 0)",
    "kill all": "import os\nos.kill(-1, 0)",
    "kill by thread": BY_NUMBER + "must(libc.tgkill(1, 1, 0))",
    "kill by descriptor": "import os\nos.pidfd_open(os.getppid())",
    "kill by input": "import fcntl, os, signal\nread, write = os.pipe()\nfcntl.fcntl(read, 10, signal.SIGURG)\n"
    "fcntl.fcntl(read, fcntl.F_SETOWN, os.getppid())",  # F_SETSIG
    "owner of input": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
    "limits of parent": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_AS)",
    "slow down parent": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 0)",
    "move parent": "import os\nos.sched_setaffinity(os.getppid(), {{0}})",
    "trace parent": BY_NUMBER + "import os\nmust(libc.ptrace(16, os.getppid(), 0, 0))",
    "trace me": BY_NUMBER + "must(libc.ptrace(0, 0, 0, 0))",
    "memory of parent": BY_NUMBER + "import os\nmust(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))",
    "mount": BY_NUMBER + "must(libc.mount(b'none', b'/', b'tmpfs', 0, None))",
    "unshare": BY_NUMBER + "must(libc.unshare(0x10000000))",
    "chroot": "import os\nos.chroot('.')",
    "become root": "import os\nos.setuid(0)",
    "outlive": BY_NUMBER + "must(libc.prctl(1, 0, 0, 0, 0))",
    "ring": BY_NUMBER + "must(libc.syscall(425, 1, None))",  # io_uring_setup
    "program": BY_NUMBER + "must(libc.syscall(321, 0, None, 0))",  # bpf
    "terminal": "import fcntl, os\nfcntl.ioctl(os.pipe()[0], 0x5412, b'x')",  # TIOCSTI
    "shared memory of old": BY_NUMBER + "must(libc.shmget(0, 4096, 0o1600))",
    "shut down": BY_NUMBER + "must(libc.reboot(0))",
    "host name": "import socket\nsocket.sethostname('mine')",
}
OTHERS = {
    "threads": ("import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(60,)).start()", "error"),
    "system": ("import os\nos.system('touch {folder}/new')", "ok"),
    "32 bits": (
        "import ctypes, mmap\npage = mmap.mmap(-1, 4096, prot=7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())",
        "killed",
    ),
    "memory": ("x = bytearray(1 << 40)", "memory"),
    "memory, bit by bit": ("x = []\nwhile True: x.append(bytes(1 << 20))", "memory"),
    "mapped memory": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24))", "error"),
    "more memory allowed": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "error"),
    "full disk": ("for i in range(99): open(f'{{i}}', 'wb').write(bytes(1 << 20))", "error refused"),
    "many files": ("for i in range(9999): open(f'{{i}}', 'wb').close()", "error refused"),
    "open files": ("import os\nx = []\nwhile True: x.append(os.dup(0))", "error"),
    "output": ("while True: print('a' * 99)", "killed"),
    "output to errors": ("import os\nwhile True: os.write(2, bytes(9999))", "killed"),
    "output at the end": ("print('a' * 70_000)", "killed"),
    "crash": ("import ctypes\nctypes.string_at(0)", "killed"),
    "recursion": ("def f(): f()\nf()", "error"),
    "nesting": ("x = " + "-" * 100_000 + "1", "error memory killed"),
    "interrupt": ("raise KeyboardInterrupt", "error"),
    "bad value": ("class A:\n    __repr__ = None\nA()", "error"),
    "bad error": ("class A(Exception):\n    __str__ = None\nraise A", "error"),
    "exit": ("import sys\nsys.exit(3)", "error"),
    "no output": ("import sys\nsys.stdout.close()\nsys.stderr = None\n1 / 0", "error"),
    "nothing open": ("import os\nos.closerange(0, 9)", "error"),
    "forged report": ("import os\nos.write(3, b'\\xff\\n' * 999)", "ok"),
    "long report": ("import os\nwhile True: os.write(3, bytes(999))", "killed"),
    "no text": ("print('\\ud800')", "ok"),
}
ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(99)",
    "deaf": "import signal\nfor i in {{*range(1, 65)}} - {{9, 19, 32, 33}}: signal.signal(i, signal.SIG_IGN)\nwhile True: pass",
    "in C": "sum(range(10**18))",
    "while it ends": "try:\n    1 / 0\nfinally:\n    while True: pass",
    "no pipes": "import os\nos.closerange(0, 9)\nwhile True: pass",
}


def outcomes(folder: Path, without=()) -> dict[str, tuple[str, str, str]]:
    """name: (outcome, the allowed ones, what it printed), of all code above. `folder` holds a file victim."""
    from lm.sandbox.run import run_many

    quick = {name: (code, "refused") for name, code in (OUTSIDE | REFUSED).items()} | OTHERS
    found = {}
    for codes, seconds in ((quick, 20.0), ({name: (code, "timeout") for name, code in ENDLESS.items()}, 0.25)):
        filled = [code.format(victim=str(folder / "victim"), folder=str(folder)) for code, _ in codes.values()]
        results = run_many(filled, timeout=seconds, memory_mib=64, without=without)
        for (name, (_, allowed)), result in zip(codes.items(), results, strict=True):
            found[name] = (result.outcome, allowed, result.stdout[:200])
    return found


if __name__ == "__main__":
    from lm.sandbox.run import strength

    print(json.dumps({"user": os.getuid(), "strength": strength(), "outcomes": outcomes(Path(sys.argv[1]))}))
