"""What a record states beside its document: the label of a sequence, read from another field or column as a number."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SHOWN = 24  # letters of a sequence that a message quotes


@dataclass(frozen=True)
class Label:
    """Where labels are, and what they may be.

    Attributes:
        field: The key or column that holds them.
        classes: Names of classes, as the data writes them; a label is the number of its class. None: labels are values.
    """

    field: str
    classes: tuple[str, ...] = ()

    def number(self, value: Any, document: bytes) -> float:
        """Return the class's number, or the value.

        Args:
            value: As the record has it; None where it has none.
            document: The record's sequence, for the message.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        if value is None or value == "":
            raise ValueError(f"there is no label {self.field!r}{_of(document)}")
        if not self.classes:
            return self._value(value, document)
        name = str(value).lower() if isinstance(value, bool) else str(value)
        if name not in self.classes:
            known = ", ".join(map(repr, self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
            raise ValueError(f"label {self.field!r} is {name[:80]!r}{_of(document)}; head.classes are {known}")
        return float(self.classes.index(name))

    def _value(self, value: Any, document: bytes) -> float:
        """Return the number that float32 can hold."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise ValueError(f"label {self.field!r} is {str(value)[:80]!r}{_of(document)}; it must be a number, and finite")
        return number


def _of(document: bytes) -> str:
    """Name a sequence by how it begins."""
    text = document[:SHOWN].decode("utf-8", errors="replace")
    return f" for the sequence {text + '...' * (len(document) > SHOWN)!r}"
