"""jsonl: one JSON object per line, the document in one of its fields."""

import json
from dataclasses import dataclass
from typing import Any

from .lines import LineReader, ParseLine
from .records import BOM

# Half of the time of json.loads goes into finding out how bytes are encoded and into skipping spaces around the value.
_parse = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class JsonlReader(LineReader):
    """Documents in JSON objects.

    Attributes:
        numbers: Whether whole numbers are documents too, as decimal text.
    """

    numbers: bool = False
    format_name = "jsonl"

    def parser(self, path: str) -> tuple[ParseLine, int]:
        """See `LineReader`; all files are alike."""
        return self._record, 0

    def _record(self, line: bytes) -> tuple[bytes, float]:
        """Return the document of a line, and its label or 0."""
        try:
            text = str(line, "utf-8")
            record, end = _parse(text)
            document = record[self.field].encode() if end == len(text) else None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            document = None
        if document is None:
            record = self._object(line)
            document = self._document(record)
        return document, 0.0 if self.label is None else self.label.number(record.get(self.label.field), document)

    def _object(self, line: bytes) -> dict[str, Any]:
        """Return the JSON object of a line with all the care that the fast way leaves out.

        Raises:
            ValueError: Saying what is wrong with it.
        """
        try:
            record = json.loads(str(line.removeprefix(BOM), "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found a {type(record).__name__}")
        return record

    def _document(self, record: dict[str, Any]) -> bytes:
        """Return the document of a record. Raises ValueError, saying what is wrong with it."""
        if self.field not in record:
            fields = ", ".join(map(repr, list(record)[:8])) or "none"
            raise ValueError(f"there is no field {self.field!r}; its fields are: {fields}")
        text = record[self.field]
        if self.numbers and type(text) is int:
            text = str(text)
        if not isinstance(text, str):
            wanted = "a string or a whole number" if self.numbers else "a string"
            raise ValueError(f"field {self.field!r} must be {wanted}, found a {type(text).__name__}")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"field {self.field!r} holds half a surrogate pair ({error.reason})") from None
