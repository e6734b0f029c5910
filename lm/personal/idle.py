"""Wait until nobody needs the machine: other processes use little of it, and it is not on battery."""

import time
from collections.abc import Callable

import psutil

BUSY = 25.0  # percent of all cores
LOOK, PAUSE = 1.0, 30.0  # seconds of a look, and between two


def is_idle() -> bool:
    """Return whether the machine is idle. This process must not compute meanwhile: it sleeps for LOOK seconds."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return not (battery and not battery.power_plugged) and psutil.cpu_percent(interval=LOOK) < BUSY


def wait(idle: Callable[[], bool] = is_idle, sleep: Callable[[float], None] = time.sleep) -> int:
    """Return once the machine is idle, with the number of pauses."""
    pauses = 0
    while not idle():
        sleep(PAUSE)
        pauses += 1
    return pauses
