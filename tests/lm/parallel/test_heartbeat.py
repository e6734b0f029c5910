"""When a process counts as gone."""

import jax

from lm.parallel.heartbeat import ALIVE, PARTS, Heartbeat


class Service:
    """Stands in for the coordination service. frozen: process 0 does not answer, and a call takes its time limit."""

    def __init__(self):
        self.values, self.frozen, self.seconds = {f"{ALIVE}/0": "0"}, False, 0.0

    def blocking_key_value_get(self, key, milliseconds):
        if self.frozen:
            self.seconds += milliseconds / 1000
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
        return self.values[key]

    def key_value_set(self, key, value, allow_overwrite):
        assert not self.frozen, "this call would never end"
        self.values[key] = value


def test_a_frozen_process_0_is_gone_within_one_and_a_half_times_the_limit(monkeypatch):
    monkeypatch.setenv("LMCRAFT_LOST_SECONDS", "40")
    service = Service()
    life = Heartbeat(service, process=1, processes=2)
    assert life.beat() is None
    service.frozen = True
    beats = next(n for n in range(1, 99) if life.beat() == 0)
    assert beats == PARTS
    assert service.seconds + beats * life.poll <= 60
