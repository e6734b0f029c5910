"""Count what is entered of this repository: while steps of a run are computed, and while a request is answered.

python -m tests.docs.walk train.py --config=… --workdir=…    or    python -m tests.docs.walk request FOLDER
Prints {"files": [...], "functions": n, "deep": n, "imported": n} as the last line.
"""

import collections
import json
import runpy
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>")


class Counter:
    """Counts calls of functions of lm/ and data/, while `on`, on this thread and those that are started after `watch`."""

    def __init__(self):
        self.on, self.entered, self.deep = False, collections.Counter(), 0

    def watch(self) -> None:
        """Be told of all calls from now on, which makes them slow."""
        threading.setprofile(self.see)
        sys.setprofile(self.see)

    def see(self, frame, event, argument) -> None:
        if not self.on or event != "call" or not self.own(frame):
            return
        self.entered[frame.f_code.co_filename, frame.f_code.co_qualname] += 1
        depth = 0
        while frame:
            depth += self.own(frame)
            frame = frame.f_back
        self.deep = max(self.deep, depth)

    @staticmethod
    def own(frame) -> bool:
        """Return whether a frame is a function of lm/ or data/ on any processor and Python.

        Not on all are kernels compiled for the processor, and comprehensions, which are functions before Python 3.12.
        """
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        compiled = path.startswith((f"{ROOT}/lm/kernels/dense/", f"{ROOT}/lm/kernels/native/"))
        return path.startswith((f"{ROOT}/lm/", f"{ROOT}/data/")) and not compiled and name not in COMPREHENSIONS

    def result(self) -> str:
        files = sorted({str(Path(path).relative_to(ROOT)) for path, _ in self.entered})
        modules = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
        imported = [path for path in modules if path.startswith((f"{ROOT}/lm/", f"{ROOT}/data/"))]
        return json.dumps({"files": files, "functions": len(self.entered), "deep": self.deep, "imported": len(imported)})


def train(argv: list[str]) -> str:
    """Run train.py; count from the start of its loop to the end."""
    from lm.train import events, loop

    counter, usual = Counter(), events.usual

    class First(loop.Event):
        def restore(self, run):
            counter.watch()

        def end(self, run):
            counter.on = False
            sys.setprofile(None)

    class Last(loop.Event):
        def start(self, run):
            counter.on = True
            counter.see(sys._getframe(1), "call", None)  # the loop itself

    events.usual = lambda *arguments, **more: [First(), *usual(*arguments, **more), Last()]
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    return counter.result()


def request(folder: Path) -> str:
    """Serve a tiny model, ask for a chat once, then count while the same is asked again."""
    import openai

    from data.text.tokenizer import load_tokenizer
    from lm.serve.api.service import Service
    from tests.lm.serve.conftest import engine_of, serving

    counter = Counter()
    counter.watch()
    engine = engine_of(load_tokenizer(folder / "tokenizer.model"))
    with serving(Service(engine, "tiny")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        for counter.on in (False, True):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "the cat"}], max_tokens=4)
        counter.on = False
    engine.close()
    return counter.result()


if __name__ == "__main__":
    print(train(sys.argv[1:]) if sys.argv[1] == "train.py" else request(Path(sys.argv[2])))
