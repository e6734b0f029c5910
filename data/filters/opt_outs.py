"""Read from a page's metadata whether its owner objects to its use for training.

Three ways are read: `noai` and `noimageai` among the robots directives (DeviantArt's proposal, 2022), and a reservation under
the TDM Reservation Protocol (W3C community group, 2024). Each may stand in an HTTP header or in a <meta> element.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

ROBOTS = ("robots", "x-robots-tag")
TDM = "tdm-reservation"

_DIRECTIVE = re.compile(r"[a-z-]+")


def opt_outs(metadata: Sequence[Mapping[str, str] | None]) -> dict[str, np.ndarray]:
    """Return the bool columns opt_out_noai, opt_out_noimageai and opt_out_tdm, and the str column opt_out_reason.

    Args:
        metadata: for each document its HTTP headers and <meta> elements, {name: value}; the case of names does not matter.
            Robots directives for a single robot count, too. `tdm-reservation` is a reservation if it is 1.

    Returns:
        Columns [documents]. opt_out_reason names what is true, joined by "+", such as "noai+tdm"; "" without an objection.
    """
    names = ("noai", "noimageai", "tdm")
    columns = {f"opt_out_{name}": np.zeros(len(metadata), bool) for name in names}
    reasons = []
    for number, given in enumerate(metadata):
        said = {name.strip().lower(): str(value).lower() for name, value in (given or {}).items()}
        directives = {word for name in ROBOTS for word in _DIRECTIVE.findall(said.get(name, ""))}
        directives |= {word for name, value in said.items() if name.endswith("bot") for word in _DIRECTIVE.findall(value)}
        found = {"noai": "noai" in directives, "noimageai": "noimageai" in directives, "tdm": said.get(TDM, "").strip() == "1"}
        for name, value in found.items():
            columns[f"opt_out_{name}"][number] = value
        reasons.append("+".join(name for name in names if found[name]))
    columns["opt_out_reason"] = np.array(reasons, dtype=np.str_) if reasons else np.zeros(0, np.str_)
    return columns
