"""jsonl whose documents are no text: lists of token ids, and the messages of conversations.

What a document is stands in its bytes, so that all else treats it as it treats text: ids are int32, little-endian;
messages are their JSON. `documents.make_encoder` turns both into tokens.
"""

import json
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from ..documents import IDS, Content
from .lines import JsonlReader, at_key
from .records import READERS


class StructuredReader(JsonlReader):
    """Lines are parsed once: a document is no string, so that the quick look for one finds none."""

    @override
    def _record(self, line: bytes) -> tuple[bytes, float]:
        record = self._object(line)
        document = self._document(record)
        return document, 0.0 if self.label is None else self.label.number(at_key(record, self.label.field), b"")


@READERS.add("jsonl_ids", says="a line's list of token ids is a document")
class JsonlIdsReader(StructuredReader):
    """Documents that are lists of ids in one field of JSON objects, an object per line."""

    format_name = "jsonl_ids"
    content: ClassVar[Content] = "ids"

    @override
    def _value(self, value: Any) -> bytes:
        if not isinstance(value, list) or not {int}.issuperset(map(type, value)):
            raise ValueError(f"field {self.field!r} must be a list of token ids, found {_shown(value)}")
        if value and not 0 <= min(value) <= max(value) < 2**31:
            wrong = next(index for index in value if not 0 <= index < 2**31)
            raise ValueError(f"field {self.field!r} holds {str(wrong)[:24]}, which is no token id")
        return np.array(value, dtype=IDS).tobytes()


@READERS.add("jsonl_messages", says="a line's list of messages is a document")
class JsonlMessagesReader(StructuredReader):
    """Documents that are lists of {role, content} in one field of JSON objects, an object per line."""

    format_name = "jsonl_messages"
    content: ClassVar[Content] = "messages"

    @override
    def _value(self, value: Any) -> bytes:
        if not isinstance(value, list):
            raise ValueError(f"field {self.field!r} must be a list of messages, found {_shown(value)}")
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"field {self.field!r} holds half a surrogate pair ({error.reason})") from None


def _shown(value: Any) -> str:
    """Return a value's type, and of a list the first that is no integer."""
    if not isinstance(value, list):
        return f"a {type(value).__name__}"
    return f"a list with a {next(type(item).__name__ for item in value if type(item) is not int)}"
