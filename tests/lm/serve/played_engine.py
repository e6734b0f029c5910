"""An engine that plays answers, for tests of what stands around one: the interface of the engine, without a model."""

import queue
import threading
import types

from lm.infer.engine.request import Event, Handle, Request, Times, joined


class PlayedEngine:
    """submit answers at once, on a thread of its own, with the ids that `answer(request)` gives; or raises what it raises."""

    max_positions, name = 1024, "played"

    def __init__(self, answer=lambda request: [1, 2, 3], tokenizer=None):
        self.answer, self.tokenizer = answer, tokenizer
        self.observers, self.adapters = [], ()
        self.counts = dict.fromkeys(("prompt_tokens", "generation_tokens", "prefix_queries", "prefix_hits", "preemptions"), 0)
        self.asked = []

    def stats(self):
        return types.SimpleNamespace(running=1, waiting=2, blocks_used=3, blocks=12, **self.counts)

    def submit(self, request, tell):
        self.asked.append(request)
        tokens, handle = self.answer(request), Handle(request, tell)
        threading.Thread(target=self._play, args=(handle, tokens)).start()
        return handle

    def answers(self, requests):
        found = []
        for request in requests:
            events = queue.SimpleQueue()
            self.submit(request, events.put)
            some = [events.get()]
            while not some[-1].finish:
                some.append(events.get())
            found.append(joined(some))
        return found

    def _play(self, handle, tokens):
        for token in tokens:
            handle.tell(Event((token,)))
        self.finish(handle, "stop", len(tokens))
        handle.tell(Event(finish="stop"))

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
