"""What all TOML tables share. Each room declares the tables that it reads; `trainer.config` nests them.

A table is declared once: its fields are the TOML's keys, their docstrings the `--help` text, their types and limits
what is refused. `complaints` reports what the type of a single field cannot check, as lines that are collected over all
tables and raised together.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Degree = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(min_length=1)]


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
