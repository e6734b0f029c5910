"""Parse the mixture weights of a config."""

from lm.errors import UserError


def parse_weights(text: str | None) -> dict[str, float] | None:
    """Parse "code=2,docs=1" to {"code": 2.0, "docs": 1.0}."""
    if not text:
        return None
    try:
        pairs = (part.split("=") for part in text.split(","))
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise UserError(f"data.weights={text!r} must read like 'code=2,docs=1'") from None
