"""Read from a page's metadata whether its owner objects to its use for training.

Three ways are read: `noai` and `noimageai` among the robots directives (DeviantArt's proposal, 2022), and a reservation under
the TDM Reservation Protocol (W3C community group, 2024). Each may stand in an HTTP header or in a <meta> element.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROBOTS = ("robots", "x-robots-tag")
TDM = "tdm-reservation"

_DIRECTIVE = re.compile(r"[a-z-]+")


def opt_outs(metadata: Sequence[Mapping[str, str] | None]) -> dict[str, Any]:
    """Return the bool columns opt_out_noai, opt_out_noimageai and opt_out_tdm, and the str column opt_out_reason.

    Args:
        metadata: for each document its HTTP headers and <meta> elements, {name: value}; the case of names does not matter.
            Robots directives for a single robot count, too. `tdm-reservation` is a reservation if it is 1.

    Returns:
        Columns [documents]. opt_out_reason names what is true, joined by "+", such as "noai+tdm"; "" without an objection.
    """
    objections = list(map(_objections, metadata))
    columns = {f"opt_out_{name}": np.array([name in own for own in objections], bool) for name in ("noai", "noimageai", "tdm")}
    return columns | {"opt_out_reason": list(map("+".join, objections))}


def _objections(about: Mapping[str, str] | None) -> list[str]:
    fields = {name.strip().lower(): str(value).lower() for name, value in (about or {}).items()}
    directives = {
        word for name in fields if name in ROBOTS or name.endswith("bot") for word in _DIRECTIVE.findall(fields[name])
    }
    reserved = fields.get(TDM, "").strip() == "1"
    return [*(name for name in ("noai", "noimageai") if name in directives), *(["tdm"] if reserved else [])]
