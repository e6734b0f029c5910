"""Compare two answers to a MATH problem by the rules of its authors, `is_equiv`.

Hendrycks et al. 2021, "Measuring mathematical problem solving with the MATH dataset": both are LaTeX; spellings are normalised
and the texts compared. 1/2 equals \frac12, but 0.25 does not equal \frac14. lm/align/rl/answers.py compares numbers.
"""

import re

# Applied in this order.
SPELLINGS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
UNIT = "\\text{ "  # comes only before units


def same(given: str, right: str) -> bool:
    try:
        return spelled(given) == spelled(right)
    except ValueError:
        return given == right


def spelled(answer: str) -> str:
    """Return an answer in normalised spelling. Raises: ValueError for a text that it cannot parse."""
    for written, meant in SPELLINGS:
        answer = answer.replace(written, meant)
    if answer.count(UNIT) > 1:
        raise ValueError("two units")
    answer = answer.split(UNIT)[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if answer.startswith("."):
        answer = "0" + answer
    left, *rest = answer.split("=")
    if len(rest) == 1 and len(left) <= 2:  # x = 5
        answer = rest[0]
    answer = _fractions(_roots(answer).replace(" ", ""))
    if answer == "0.5":
        return "\\frac{1}{2}"
    whole = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", answer)
    return f"\\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else answer


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{…} or \fbox{…}, or the text from the last "\boxed " to a $, else None."""
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    begin = text.rfind("\\boxed")
    begin = text.rfind("\\fbox") if begin < 0 else begin
    depth, inside = 0, text.find("{", begin) if begin >= 0 else len(text)
    for i in range(inside, len(text)) if inside >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[inside + 1 : i]
    return None


def _roots(answer: str) -> str:
    r"""Rewrite \sqrt3 as \sqrt{3}."""
    first, *rest = answer.split("\\sqrt")
    if not all(rest):
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(answer: str) -> str:
    r"""Rewrite \frac12 and \frac1{2} as \frac{1}{2}; leave the text unchanged if a part is missing."""
    whole, *rest = answer.split("\\frac")
    for part in rest:
        if not part:
            raise ValueError("a fraction of nothing")
        if part[0] == "{":
            whole += "\\frac" + part
        elif len(part) < 2:
            return answer
        elif part[1] == "{":
            whole += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            whole += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return whole
