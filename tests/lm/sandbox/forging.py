"""Programs that try to pass a test whose answers they do not know, and honest ones that pass it."""

SETUP = "import math\n\ndef half(x: int) -> int:\n    return x // 2\n\ndef f(x, *more):\n    '''Return 7 x + 5.'''\n"
SECRET = "1f0c5a3e"  # in the test; a program that prints it has read the test
TEST = """
secret = "1f0c5a3e"
def check(candidate):
    assert candidate(2) == 19
    assert candidate(-3) == -16
    assert half(candidate(1)) == 6
    assert math.isclose(candidate(0.5), 8.5)
    data = [3, 1]
    assert [candidate(x) for x in data] == [26, 12]
    try:
        candidate("a", "b", "c")
        raise RuntimeError("no exception")
    except TypeError:
        pass
check(f)
"""
RIGHT = "def f(x, *more):\n    if more:\n        raise TypeError(more)\n    return 7 * x + 5\n"
WALK = """
import sys
def f(*args):
    frame = sys._getframe()
    while frame:
        print(frame.f_globals, frame.f_locals)
        frame = frame.f_back
    return 0
"""
SCAN = """
import ctypes, gc, re
def f(*args):
    secret = re.compile(b'1f0[c]5a3e')  # which is not the secret itself
    for page in {id(o) >> 12 for o in gc.get_objects()}:
        found = ctypes.string_at(page << 12, 4096)
        if secret.search(found): print(found)
    return 0
"""
SEND = """
import os, time
def send(m): os.write(5, len(m).to_bytes(8, 'big') + m)
def f(*args): return 0
send(b'true')
"""
ASK = "\nprint(os.read(4, 999))\nprint(os.read(4, 999))"
# An object that says yes to everything.
YES = """
class Yes:
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __sub__(self, other): return self
    __add__ = __radd__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __truediv__ = __sub__
    def __abs__(self): return self
    def __float__(self): return 8.5
    def __index__(self): return 19
    def __hash__(self): return hash(19)
    def __bool__(self): return True
    def __iter__(self): return iter([])
"""
PASSED = "b'finished\\n'"
FORGING = {
    "leave": "import os\nos._exit(0)",
    "leave in a call": "import os\ndef f(*args): os._exit(0)",
    "exit": "import sys\nsys.exit(0)",
    "exit in a call": "import sys\ndef f(*args): sys.exit(0)",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(*args): return 0",
    "exit by finaliser": "import os\nclass A:\n    def __del__(self): os._exit(0)\ndef f(*args): A()",
    "print the report": f"print({PASSED}.decode())\ndef f(*args): return 0",
    "write the report": f"import os\nos.write(3, {PASSED})\nos._exit(0)",
    "write the report in a call": f"import os\ndef f(*args):\n    os.write(3, {PASSED})\n    os._exit(0)",
    "write the report everywhere": f"import os\nfor fd in range(64):\n    try: os.write(fd, {PASSED})\n"
    "    except OSError: pass\ndef f(*args): os._exit(0)",
    "say it is ready, and leave": SEND + "os._exit(0)",
    "answer true for ever": SEND + "while True: send(b'true')",
    "answer before it is asked": SEND + "while True: send(b'[\"value\", 19, []]')",
    "answer with too much": SEND + "os.write(5, (1 << 60).to_bytes(8, 'big'))\nwhile True: os.write(5, bytes(1 << 16))",
    "answer with no JSON": SEND + "send(b'tru!')\ntime.sleep(9)",
    "answer deeply": SEND + "send(b'[' * 100000)\ntime.sleep(9)",
    "take a name of the test": SEND + 'send(b\'["name", "secret"]\')' + ASK,
    "take an attribute of the test": SEND + 'send(b\'["get", 0, "__globals__"]\')' + ASK,
    "do to the test": SEND + 'send(b\'["do", 0, "setattr", [1]]\')' + ASK,
    "call the test": SEND + "send(b'[\"call\", 0, [], []]')" + ASK,
    "the caller's frame": WALK,
    "inspect": "import inspect\ndef f(*args):\n    print(inspect.stack(9))\n    return 0",
    "all objects": "import gc\ndef f(*args):\n    print([o for o in gc.get_objects() if type(o) is dict])\n    return 0",
    "own memory": SCAN,
    "own memory by /proc": "def f(*args): print(open('/proc/self/mem', 'rb').read())",
    "memory of the test": "import os\ndef f(*args): open(f'/proc/{os.getpid() + 1}/mem', 'r+b')",
    "files of the supervisor": "import os\ndef f(*args): open(f'/proc/{os.getppid()}/fd/3', 'wb').write(b'x')",
    "the test's file": "def f(*args): print([open(f'../../tests/{n}').read() for n in range(99)])",
    "the test's file by descriptor": "import os\nfor fd in range(4096):\n"
    "    try: print(os.listdir(fd), os.open('../tests/0', 0, dir_fd=fd))\n    except OSError: pass\ndef f(*args): return 0",
    "files of the other": "import os\ndef f(*args):\n    open('../0test/unittest.py', 'w').write('x')",
    "equal to all": YES + "def f(*args): return Yes()",
    "a number equal to all": "class N(int):\n    def __eq__(self, other): return True\n    def __hash__(self): return 1\n"
    "def f(*args): return N(0)",
    "a number that counts": "class N(float):\n    def __eq__(self, other): return True\n    def __float__(self): return 19.0\n"
    "    def __floordiv__(self, other): return 6\ndef f(*args): return N(0)",
    "a text equal to all": "class S(str):\n    def __eq__(self, other): return True\ndef f(*args): return S()",
    "a list equal to all": "class L(list):\n    def __eq__(self, other): return True\ndef f(*args): return L()",
    "equality of int": "import ctypes\ndef f(*args):\n    ctypes.memmove(id(19), id(0), 32)\n    return 0",
    "patched builtins": "import builtins\nbuiltins.AssertionError = builtins.isinstance = builtins.abs = lambda *a: True\n"
    "def f(*args): return 0",
    "patched assertion": "import builtins\nbuiltins.AssertionError = SystemExit\ndef f(*args): return 0",
    "patched exit": "import sys, os\nsys.exit = os._exit = exit = lambda *a: None\nsys.excepthook = lambda *a: None\n"
    "def f(*args): return 0",
    "patched math": "import math\nmath.isclose = math.fabs = lambda *a, **k: True\ndef f(*args): return 0",
    "own helper": "def half(x): return 6\ndef check(candidate): pass\ndef f(*args): return 0",
    "shadowed modules": "import os, sys\nfor name in ('math', 'json', 'operator', 'sitecustomize', 'usercustomize'):\n"
    "    open(name + '.py', 'w').write('isclose = lambda *a: True')\nopen('a.pth', 'w').write('import os; os._exit(0)')\n"
    "sys.path.insert(0, os.getcwd())\nfor name in ('math', 'json'): sys.modules.pop(name, None)\ndef f(*args): return 0",
    "tracing": "import sys\nsys.settrace(lambda *a: sys.exit(0))\nsys.setprofile(lambda *a: None)\ndef f(*args): return 0",
    "audit": "import sys, os\nsys.addaudithook(lambda *a: os._exit(0))\ndef f(*args): return 0",
    "signals": "import signal, os, sys\nfor s in (2, 14, 15): signal.signal(s, lambda *a: os._exit(0))\nsignal.alarm(1)\n"
    "def f(*args):\n    while True: pass",
    "kill the test": "import os\ndef f(*args):\n    for pid in range(2, 400):\n        if pid != os.getpid(): os.kill(pid, 9)",
    "kill the supervisor": "import os\ndef f(*args): os.kill(os.getppid(), 9)",
    "trace the test": "import ctypes, os\ndef f(*args):\n    ctypes.CDLL(None).ptrace(16, os.getpid() + 1, 0, 0)\n    return 0",
    "memory of the test by call": "import ctypes, os\ndef f(*args):\n"
    "    print(ctypes.CDLL(None).process_vm_readv(os.getpid() + 1, None, 0, None, 0, 0))\n    return 0",
    "fork": "import os\ndef f(*args):\n    if not os.fork(): os._exit(0)\n    return 0",
    "thread": "import threading, os\ndef f(*args):\n    threading.Thread(target=os._exit, args=(0,)).start()\n    return 0",
    "generator": "def f(*args):\n    yield 19",
    "exceptions": "def f(*args): raise AssertionError",
    "exit by exception": "def f(*args): raise SystemExit",
    "interrupt by exception": "def f(*args): raise KeyboardInterrupt",
    "an exception of its own": "class Gone(BaseException): pass\nGone.__name__ = 'GeneratorExit'\ndef f(*args): raise Gone",
    "strange exception": "class E(Exception): pass\nE.__name__ = '\\0'\nE.args = 7\ndef f(*args): raise E",
    "no memory": "def f(*args): return 'a' * (1 << 40)",
    "much": "def f(*args): return [0] * (1 << 22)",
    "huge number": "def f(*args): return 1 << (1 << 27)",
    "huge fraction": "def f(*args):\n    class Fraction:\n        def __str__(self): return '1e999999999'\n"
    "    Fraction.__module__ = 'fractions'\n    return Fraction()",
    "nothing defined": "x = 1",
    "nothing callable": "f = 19",
    "wrong": "def f(x, *more): return 7 * x + 4",
}
# name: (program, test, setup, entry point)
HONEST = {
    "right": (RIGHT, TEST, SETUP, "f"),
    "begun by the prompt": (SETUP + "    if more:\n        raise TypeError\n    return 7 * x + 5", TEST, SETUP, "f"),
    "in place": ("def f(x): x.sort(); x[0] = {'a': {1}}", "x = [3, 1, 2]\nf(x)\nassert x == [{'a': {1}}, 2, 3]", "", "f"),
    "all plain data": (
        "def f(x): return x",
        "import collections, decimal, fractions\nfor x in [None, True, 1, -1 << 90, 1.5, 1j, 'a\\ud800', b'a', [1, [2]], "
        "(1, (2,)), {1}, frozenset('a'), {(1, 2): [3]}, range(1, 9, 2), collections.deque([1]), decimal.Decimal('0.10'), "
        "fractions.Fraction(1, 3)]:\n"
        "    assert f(x) == x and type(f(x)) is type(x) and str(f(x)) == str(x)\nassert f(float('nan')) != f(float('nan'))",
        "",
        "f",
    ),
    "subclasses": (
        "import collections, enum\ndef f(n): return [collections.Counter('aab'), collections.OrderedDict(a=1), "
        "collections.namedtuple('P', 'x y')(1, 2), collections.defaultdict(list, a=[1]), enum.IntEnum('C', 'RED').RED][n]",
        "assert [f(n) for n in range(5)] == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), {'a': [1]}, 1]",
        "",
        "f",
    ),
    "a class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)\n"
        "    def __contains__(self, x): return x in self.items\n"
        "    def __eq__(self, other): return self.items == other.items\n    def __getitem__(self, i): return self.items[i]",
        "s, t = Stack(), Stack()\ns.push(1); s.push([2])\nassert len(s) == 2 and 1 in s and s[1] == [2] and s != t and not t\n"
        "assert s.pop() == [2] and s.items == [1]\nt.push(1)\nassert s == t and list(s) == [1]",
        "",
        "Stack",
    ),
    "a generator": (
        "def f(n):\n    for i in range(n): yield i",
        "import itertools\nassert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sum(f(4)) == 6\n"
        "assert list(itertools.islice(f(10 ** 9), 2)) == [0, 1]",
        "",
        "f",
    ),
    "a function that is given": (
        "def f(g, xs, **more): return [g(x, **more) for x in xs]",
        "assert f(lambda x, y=0: x + y, [1, 2], y=5) == [6, 7] and f(str, [1]) == ['1']\n"
        "assert f(g := lambda x: f(str, [x]), [1]) == [['1']]",
        "",
        "f",
    ),
    "a function that is returned": ("def f(n): return lambda x: x + n", "assert f(3)(4) == 7", "", "f"),
    "linked nodes": (
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
        "def f(node):\n    before = None\n    while node: before, node.next, node = node, before, node.next\n    return before",
        "node = f(Node(1, Node(2, Node(3))))\nfound = []\nwhile node:\n    found.append(node.value)\n    node = node.next\n"
        "assert found == [3, 2, 1], found",
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n",
        "f",
    ),
    "exceptions": (
        "class Mine(ValueError): pass\ndef f(x):\n    if x: raise Mine('no', x)\n    return {}['a']",
        "try: f(1)\nexcept ValueError as error: assert error.args == ('no', 1) and type(error).__name__ == 'Mine'\n"
        "else: assert False\n"
        "try: f(0)\nexcept KeyError as error: assert error.args == ('a',)\nelse: assert False",
        "",
        "f",
    ),
    "a helper of the program": ("def g(x): return x + 1\ndef f(x): return g(x)", "assert f(1) == g(1) == 2", "", "f"),
    "a test without imports": ("def f(x): return x ** 0.5", "assert math.isclose(f(2.0), math.sqrt(2))", "", "f"),
    "output and input": ("print(input())\ndef f(): return 1", "assert f() == 1", "", "f"),
    "large numbers": (
        "import math\ndef f(n): return math.factorial(n)",
        "import math\nassert f(3000) == math.factorial(3000)",
        "",
        "f",
    ),
}
