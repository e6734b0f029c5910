"""Load a constitution: hazards for judging answers, principles for critique and revision, policies for serving."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from lm.errors import UserError

SHIPPED = Path(__file__).parent / "constitution.yaml"

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]


class Record(BaseModel):
    """A part of the file. A key that it does not name is an error, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hazard(Record):
    name: Text
    definition: Text


class Principle(Record):
    """A principle of the constitution.

    critique, revision: requests to the model that criticises and rewrites. critiques, refusals: texts of the template reviser,
    formatted with the hazard's name. hazards: ids of the hazards that it applies to; a file without them means all.
    """

    id: Text
    text: Text
    critique: Text
    revision: Text
    critiques: Texts
    refusals: Texts
    hazards: list[Text] = []

    @field_validator("critiques", "refusals")
    @classmethod
    def _check_braces(cls, texts: list[str]) -> list[str]:
        for text in texts:
            try:
                text.format(hazard="")
            except (LookupError, AttributeError, TypeError, ValueError):
                raise ValueError(f"{text!r} may hold no braces but {{hazard}}") from None
        return texts


class Policy(Record):
    """A rule of the server's guardrails (lm/serve/guardrails.py). It finds spans by patterns, personal data or a classifier.

    hazard: id of a hazard, or "".
    patterns: regular expressions, matched without regard to case. Each matches a bounded number of characters.
    pii: kinds of personal data of data/filters/pii/masking.py. classifier: folder of data/filters/classifier whose "good" texts
      are the harmless ones, or ""; it finds the stretches whose probability of harm is at least `threshold`.
    message: what is said instead of a blocked text; "": a refusal of a principle.
    """

    id: Text
    action: Literal["block", "mask", "flag"]
    hazard: str = ""
    where: Literal["input", "output", "both"] = "both"
    patterns: list[Text] = []
    pii: list[Text] = []
    classifier: str = ""
    threshold: float = Field(0.9, ge=0, le=1, strict=True)
    message: str = ""

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _check_finds(self) -> "Policy":
        if not (self.patterns or self.pii or self.classifier):
            raise ValueError(f"{self.id} finds nothing; give patterns, pii or classifier")
        return self


class Constitution(Record):
    hazards: Annotated[dict[Text, Hazard], Field(min_length=1)]
    principles: Annotated[list[Principle], Field(min_length=1)]
    policies: list[Policy] = []

    @model_validator(mode="after")
    def _check_names(self) -> "Constitution":
        for kind, records in (("principles", self.principles), ("policies", self.policies)):
            ids = [record.id for record in records]
            if twice := next((id for id in ids if ids.count(id) > 1), None):
                raise ValueError(f"two {kind} are called {twice!r}; give each an id of its own")
        named = {p.id: p.hazards for p in self.principles} | {p.id: [p.hazard] for p in self.policies if p.hazard}
        for id, hazards in named.items():
            if wrong := [hazard for hazard in hazards if hazard not in self.hazards]:
                raise ValueError(f"{id}: no hazard {wrong[0]!r}; there are {', '.join(self.hazards)}")
        if bare := set(self.hazards) - {hazard for p in self.principles for hazard in p.hazards or self.hazards}:
            raise ValueError(f"no principle concerns {', '.join(sorted(bare))}; name them, or add one without hazards")
        return self

    def principle_for(self, hazard: str, key: str) -> Principle:
        """Choose a principle for the hazard (any principle if the hazard is unknown) by a hash of `key`."""
        return choose([p for p in self.principles if hazard in (p.hazards or self.hazards)] or self.principles, key)

    def name_of(self, hazard: str) -> str:
        return self.hazards[hazard].name if hazard in self.hazards else hazard or "harm"


def choose(options, key: str):
    """Choose an option by a hash of the key, so the choice does not depend on the machine or the order of calls."""
    return options[int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % len(options)]


def load_constitution(path: str | Path | None = None) -> Constitution:
    """Read and check a YAML file; None reads constitution.yaml in this folder, which shows the format.

    Raises: UserError that names the file and the problem.
    """
    path = Path(path) if path else SHIPPED
    try:
        return Constitution.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"safety.constitution={path}: {error.strerror}; name a YAML file") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = [str(part + 1) if isinstance(part, int) else part for part in first["loc"]]  # records count from 1
        raise UserError(": ".join([str(path), *place, first["msg"].removeprefix("Value error, ")])) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that is none
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
