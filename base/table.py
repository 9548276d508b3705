"""What all TOML tables share. Each room declares the tables that it reads; `trainer.config` nests them.

A table is declared once: its fields are the TOML's keys, their docstrings the `--help` text, their types and limits
what is refused. `complaints` reports what the type of a single field cannot check, as lines; those of all tables are
raised together.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import Self

# A number that nobody means is refused where it is written, not hours later where it overflows: docs/limits.md.
COUNT = 2**31 - 1  # of a count; two of them multiply within 64 bits
STEPS = 10**9  # a thousand a second for eleven days
TOKENS = 2**24  # of a row or a document; a row of them has 16 times the longest context that was published with weights
IDS = 2**24  # of a vocabulary; published ones have up to 2^18


def _path(text: str) -> str:
    """Refuse text that no system takes for a path."""
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL")
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            raise ValueError("there is no such user, whose home folder `~` would be") from None
    return text


Positive = Annotated[int, Field(gt=0, le=COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=COUNT)]
Degree = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(gt=0, le=STEPS)]
Tokens = Annotated[int, Field(gt=0, le=TOKENS)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e15)]  # may be tokens of a source
Name = Annotated[str, Field(min_length=1)]
PathText = Annotated[str, AfterValidator(_path)]


class Table(BaseModel):
    """A TOML table: unknown keys are refused, nothing is converted in silence ("7" is not 7), immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def complaints(self) -> list[str]:
        """Return the contradictions in this table, a line for each, which begins with its full TOML key."""
        return []

    def replace(self, **changes: Any) -> Self:
        """Return the same table with other values of some keys, validated again."""
        return type(self)(**{**dict(self), **changes})


def changed(table: BaseModel, key: str) -> bool:
    """Return whether a key has another value than its default."""
    return bool(getattr(table, key) != type(table).model_fields[key].get_default(call_default_factory=True))
