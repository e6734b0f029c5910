"""train.py, in which CODE runs before batch `n` is made: python -m tests.verbs.slow_batches CODE [flags of train.py]"""

import runpy
import sys
import time

from data.text.batches import TextBatches

if __name__ == "__main__":
    code, whole = sys.argv.pop(1), TextBatches.batch

    def batch(self, n, *rest):
        exec(code, {"n": n, "time": time})
        return whole(self, n, *rest)

    TextBatches.batch = batch
    sys.argv[0] = "train.py"
    runpy.run_path("train.py", run_name="__main__")
