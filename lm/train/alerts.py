"""Tell people that a run needs them: a line of WORKDIR/alerts.jsonl, and a message to a webhook.

A line is {"time" (seconds since 1970), "kind", "step" (the last one, or null), "text"}. Kinds: rewind, diverged, high (the loss
of a checkpoint that is saved), damaged (a checkpoint), slow (a host), hung, lost (a process), failed (another error). The
variable LMCRAFT_ALERTS_URL names a webhook that takes {"text": …}, as those of Slack and Mattermost do. It is a variable,
because such an address is a secret, and configs are recorded and published. Only process 0 writes and sends.
"""

import json
import os
import socket
import threading
import time
from pathlib import Path

from lm.parallel.hosts import is_first

FILE, VARIABLE = "alerts.jsonl", "LMCRAFT_ALERTS_URL"
SECONDS = 5.0  # that the webhook has to answer


def alert(workdir: Path, kind: str, step: int | None, text: str, *, wait: bool = False) -> None:
    """Record an alert and send it, in a thread unless `wait`. A webhook that fails costs a line, a full disk nothing."""
    if not is_first():
        return
    row = {"time": round(time.time(), 3), "kind": kind, "step": step, "text": text}
    try:
        with open(workdir / FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError:
        pass  # a run that goes on says the same in its log, and a webhook may still work
    if not (url := os.environ.get(VARIABLE)):
        return
    thread = threading.Thread(target=_send, args=(url, f"{workdir.name} on {socket.gethostname()}: {text}"), daemon=True)
    thread.start()
    if wait:
        thread.join(2 * SECONDS)


def _send(url: str, text: str) -> None:
    import requests

    try:
        requests.post(url, json={"text": text}, timeout=SECONDS).raise_for_status()
    except requests.RequestException as error:
        answer = f"status {error.response.status_code}" if error.response is not None else type(error).__name__
        print(f"warning: {VARIABLE}: the webhook did not take an alert ({answer})", flush=True)  # not the address, a secret
