"""Watch a server: guardrails, measures of behaviour, feedback, the store and metrics, behind one object.

    watch = Watch(WatchSettings(...), folder, engine, model_name="smollm2", checkpoint=lambda: "runs/chat, step 900")
    app.add_middleware(CountRequests, metrics=watch.metrics)
    app.include_router(watch.router())              # /metrics, /status, /status.json, /v1/monitor/accept, /v1/feedback

    seen = watch.on_request(messages, id=answer_id, user=user, adapter=adapter, choices=n)
    if seen.blocked:                                # answer with seen.refusal, and finish_reason "content_filter"
        …
    # Give the model seen.messages, because personal data or other spans may be masked, and ask for seen.with_logprobs(request).
    seen.on_tokens(k, event.likely, len(event.tokens))      # for each Event of the engine, of choice k
    sent, ends = seen.pass_on(k, text, over)                # what may be sent of its text; whether a rule blocked: cancel then
    seen.on_finished(finish, k, tokens, prompt_tokens)

    watch.close()                                   # after the engine has been drained

The hooks of a request are called by one thread at a time, and take microseconds. Everything slow is done by a thread of the
monitor: it measures finished exchanges (lm/serve/watch/measures.py), follows the behaviour of each checkpoint and adapter
(lm/serve/watch/behaviour.py), and stores a sample. An alert becomes a metric, a row of the store, a line of the log, and stands
on the status page.
"""

import concurrent.futures
import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from data.media.parts import noted
from lm.evals.judges.judges import open_judge
from lm.evals.judges.verdict import guarded
from lm.serve.guardrails import Decision, Guardrails
from lm.serve.metrics import Metrics
from lm.serve.seen import Seen
from lm.serve.settings import WatchSettings
from lm.serve.store import Exchange, Feedback, Store
from lm.serve.watch import behaviour as behaviours
from lm.serve.watch import measures, reference, status
from lm.serve.watch.behaviour import Alert, Behaviour

LOG = logging.getLogger("lm.serve")
WAITING = 1000  # finished exchanges that wait for the monitor; more are left out and counted
RECENT = 500  # exchanges in memory that feedback may still be about
BATCH = 32  # exchanges that are measured at once
ENDED = ("stop", "length", "content_filter")  # finishes of whole answers; others are not measured
SAVE_EVERY, SHOW_EVERY = 50, 2.0  # exchanges between savings of the state; seconds between updates of the gauges


class Watch:
    """All that watches one server. Close it, or what waits is lost."""

    def __init__(
        self, settings: WatchSettings, folder: str | Path, engine, *, model_name: str, checkpoint: Callable[[], str] = str
    ):
        """folder: for the store and the state of behaviour. checkpoint: what is loaded now, in words.

        Raises: UserError: a file that the settings name is invalid.
        """
        self.settings, self.folder, self.checkpoint = settings, Path(folder), checkpoint
        self.guardrails = Guardrails(settings.constitution)
        hazards = {id: hazard.name for id, hazard in self.guardrails.constitution.hazards.items()}
        self._judge = guarded(open_judge(settings.judge, hazards=hazards)) if settings.judge else None
        self._given = reference.load(settings.reference_file) if settings.reference_file else None
        self.metrics = Metrics(model_name, engine.max_positions)
        self.metrics.watch(engine)
        self.store = Store(self.folder / "exchanges.sqlite", settings.store_days, settings.store_megabytes)
        self._behaviours: dict[tuple[str, str], Behaviour] = {}
        self._lock = threading.Lock()  # of them
        self._recent: OrderedDict[str, Exchange] = OrderedDict()
        self._recent_lock = threading.Lock()
        self._queue: queue.Queue[Callable[[], None] | Seen | None] = queue.Queue(WAITING)
        self._unsaved, self._shown, self._counted = 0, 0.0, [0, 0]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)
        self._thread.start()
        self.status = status.Status(self)

    def router(self) -> APIRouter:
        """Return all routes of this side of the server."""
        router = APIRouter()
        router.include_router(self.metrics.router())
        router.include_router(self.status.router())
        return router

    def on_request(
        self, messages: Sequence[Mapping[str, Any]], *, id: str, user: str = "", adapter: str = "", choices: int = 1
    ) -> Seen:
        """Check a request. messages: {role, content}, content as text, with `media` as data/media/parts.py has them; for a
        plain prompt, one user message. id: of the answer, by which feedback names it."""
        plain = [{"role": m["role"], "content": noted(m["content"], m)} for m in messages]
        about = {"id": id, "time": time.time(), "checkpoint": self.checkpoint(), "adapter": adapter, "user": user}
        measured = _hash(id) < self.settings.share
        seen = Seen(self.finished, self.metrics, self.guardrails, about | {"messages": plain}, choices, measured)
        for message in messages:
            checked = self.guardrails.check(message["content"], "input")
            seen.decisions += checked.decisions
            seen.messages.append({**message, "content": checked.text})
            if checked.blocked and not seen.blocked:
                seen.blocked = checked.blocked
                seen.refusal = self.guardrails.refusal(checked.blocked, id)
        if seen.blocked:
            seen.refuse()
        return seen

    def on_feedback(self, feedback: Feedback) -> concurrent.futures.Future:
        """Store a rating. The future is done when it is on disk; it raises LookupError if no such exchange is known."""
        with self._recent_lock:
            about = self._recent.get(feedback.exchange)
        future = self.store.feedback(feedback, about)
        future.add_done_callback(lambda done: self._rated(done, feedback))
        return future

    def accept(self, checkpoint: str, adapter: str) -> bool:
        """Take the behaviour as it is now for the new reference, and end its alerts. False: it is not known."""
        with self._lock:
            found = self._behaviours.get((checkpoint, adapter))
            if found is None:
                return False
            found.accept()
            found.save(self.folder / "behaviour")
        self.show()
        return True

    def finished(self, seen: Seen) -> None:
        """Take an exchange that is over; called by Seen."""
        for one in seen.decisions:
            self._decided(one, seen.about["adapter"])
        with self._recent_lock:
            self._recent[seen.about["id"]] = seen.exchange()
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        try:
            self._queue.put_nowait(seen)
        except queue.Full:
            self.metrics.of("monitor_dropped").inc()

    def flush(self) -> None:
        """Wait until what is finished is measured and stored."""
        done = threading.Event()
        self._queue.put(done.set)
        done.wait()
        self.store.flush()

    def close(self) -> None:
        """Measure and store what waits, save the state, and end all threads."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.status.close()
        self._queue.put(None)
        self._thread.join()
        self.store.close()

    def snapshot(self) -> dict[str, Any]:
        """Return what the status page says of behaviour: {"behaviours": […], "alerts": […]}, as JSON."""
        with self._lock:
            found = [
                {
                    "checkpoint": one.checkpoint,
                    "adapter": one.adapter,
                    "exchanges": one.exchanges,
                    "collected": None if one.reference else len(one.rows),
                    "reference": self.settings.reference,
                    "streams": one.figures(),
                }
                for one in self._behaviours.values()
            ]
            alerts = [a._asdict() for one in self._behaviours.values() for a in one.alerts.values()]
        return {"behaviours": found, "alerts": sorted(alerts, key=lambda one: one["time"]), "alpha": self.settings.alpha}

    def show(self) -> None:
        """Bring the gauges up to date."""
        with self._lock:
            for one in self._behaviours.values():
                one.show(self.metrics)
            written, dropped = self.store.written, self.store.dropped
            self.metrics.of("store_exchanges").inc(written - self._counted[0])
            self.metrics.of("store_dropped").inc(dropped - self._counted[1])
            self._counted = [written, dropped]
            self.metrics.of("store_bytes").set(self.store.bytes)
        self._shown = time.monotonic()

    # The monitor's thread.

    def _work(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < BATCH:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = None in batch
            try:
                self._measure([one for one in batch if isinstance(one, Seen)])
                if ended or self._unsaved >= SAVE_EVERY:
                    self._save()
                if ended or time.monotonic() - self._shown >= SHOW_EVERY:
                    self.show()
            except Exception:  # the server goes on; what failed is left out
                LOG.exception("the monitor could not measure %d exchanges", len(batch))
                self.metrics.of("monitor_dropped").inc(sum(isinstance(one, Seen) for one in batch))
            for one in batch:
                if callable(one):
                    one()

    def _measure(self, batch: Sequence[Seen]) -> None:
        for seen in batch:
            for answer in seen.answers() if not seen.blocked else ():
                flags = self.guardrails.flags(answer)
                seen.decisions += flags
                for one in flags:
                    self._decided(one, seen.about["adapter"])
        kept = [seen for seen in batch if seen.measured]
        found = dict(zip(map(id, kept), measures.measure(kept, self._judge) if kept else ()))
        for seen in batch:
            measured = found.get(id(seen))
            flagged = bool(seen.decisions) or bool(measured and measured.unsafe)
            exchange = seen.exchange(measured._asdict() | {"words": None} if measured else None, flagged)
            with self._recent_lock:
                if exchange.id in self._recent:
                    self._recent[exchange.id] = exchange
            if flagged or _hash(exchange.id, "store") < self.settings.store_share:
                self.store.exchange(exchange)
            if measured and not seen.blocked and exchange.finish in ENDED:
                who = {"checkpoint": exchange.checkpoint, "adapter": exchange.adapter}
                with self._lock:
                    alerts = self._behaviour(**who).add(measured)
                self.metrics.of("behaviour_exchanges", **who).inc()
                self._unsaved += 1
                self._alert(alerts)

    def _rated(self, done: concurrent.futures.Future, feedback: Feedback) -> None:
        """Called on the store's thread."""
        if done.cancelled() or done.exception() is not None:
            return
        _, checkpoint, adapter = done.result()
        rating = "up" if feedback.rating > 0 else "down"
        self.metrics.of("feedback", checkpoint=checkpoint, adapter=adapter, rating=rating).inc()

        def follow() -> None:
            with self._lock:
                alerts = self._behaviour(checkpoint, adapter).add_rating(feedback.rating < 0)
            self._alert(alerts)

        try:
            self._queue.put_nowait(follow)
        except queue.Full:
            self.metrics.of("monitor_dropped").inc()

    def _behaviour(self, checkpoint: str, adapter: str) -> Behaviour:
        key = checkpoint, adapter
        if key not in self._behaviours:
            place = self.folder / "behaviour"
            self._behaviours[key] = behaviours.load(place, checkpoint, adapter, self.settings, self._given)
        return self._behaviours[key]

    def _alert(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            LOG.warning("alert: %s", alert.text)
            who = {"checkpoint": alert.checkpoint, "adapter": alert.adapter, "stream": alert.stream}
            self.metrics.of("behaviour_alerts", **who).inc()
            self.store.alert(alert._asdict())
        if alerts:
            self._save()
            self.show()

    def _save(self) -> None:
        self._unsaved = 0
        with self._lock:
            for one in self._behaviours.values():
                one.save(self.folder / "behaviour")

    def _decided(self, one: Decision, adapter: str) -> None:
        labels = {key: getattr(one, key) for key in ("rule", "hazard", "where", "action")}
        self.metrics.of("guardrail_decisions", adapter=adapter, **labels).inc()


def _hash(id: str, key: str = "") -> float:
    """Return a number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(f"{key}\0{id}".encode("utf-8", "replace"), digest_size=8).digest(), "big") / 2**64
