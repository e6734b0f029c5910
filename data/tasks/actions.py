"""Actions of a policy in an environment (lm/infer/environments.py)."""

import json
from typing import Any

ERROR = "error: "  # begins the observation after a call that failed


def parsed_call(action: str) -> dict[str, Any] | None:
    """Return the call {"name", "arguments"} that an action is, or None for a text."""
    try:
        call = json.loads(action)
    except (ValueError, RecursionError):
        return None
    return call if isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call else None
