"""What a monitor sees of an engine, without a model."""

import types

from lm.infer.engine.request import Handle, Request, Times


class PlayedEngine:
    max_positions = 1024

    def __init__(self):
        self.observers = []
        names = (
            "prompt_tokens",
            "generation_tokens",
            "prefix_queries",
            "prefix_hits",
            "preemptions",
            "drafts",
            "drafted",
            "accepted",
        )
        self.counts = dict.fromkeys(names, 0)

    def stats(self):
        return types.SimpleNamespace(
            running=1, waiting=2, deferred=1, blocks_used=3, blocks=12, page=16, accepted_at={0: 4, 2: 1}, **self.counts
        )

    def finish(self, handle, reason, generated, times=None):
        """Tell the observers of a request that took these times."""
        handle.times = times or Times(10.0, 10.5, 12.0, 16.0)
        self.counts["prompt_tokens"] += len(handle.request.prompt)
        self.counts["generation_tokens"] += generated
        for observer in self.observers:
            observer("step", {"tokens": generated, "seconds": 0.1})
            observer("finished", {"handle": handle, "finish": reason, "generated": generated})


def handle(prompt=5, adapter="", **more):
    return Handle(Request(tuple(range(1, prompt + 1)), 8, adapter=adapter, **more), lambda event: None)
