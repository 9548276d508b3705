"""xz and bzip2 as streams of bytes: members one after another, each to its end or refused.

Python's own readers of both take whatever follows a member and is none for the end of the file.
"""

from collections.abc import Callable
from typing import Protocol

from .bgzip import ByteFile, DamagedError

CHUNK = 2**16  # bytes read at once of the stored file


class Decompressor(Protocol):
    """A member that is inflated, as `lzma` and `bz2` have it."""

    @property
    def eof(self) -> bool:
        """Whether its end was met."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether it gives nothing more without more stored bytes."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Stored bytes behind its end."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return more of what the member holds."""
        ...


class InflatedFile:
    """A compressed file as its uncompressed bytes; going back inflates it again from its first.

    Args:
        raw: The file, as stored.
        begin: Begins a member.
        failures: What a member raises that is damaged.
        padding: Zeros may stand between members in multiples of so many; 0: not at all.
    """

    def __init__(self, raw: ByteFile, begin: Callable[[], Decompressor], failures: type[Exception], padding: int = 0) -> None:
        self._raw, self._begin, self._failures, self._padding = raw, begin, failures, padding
        self._member = begin()
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end.

        Raises:
            EOFError: The file ends within a member.
            DamagedError: It is damaged.
        """
        parts, missing = [], size
        while missing > 0 and (data := self._next(missing)):
            parts.append(data)
            missing -= len(data)
        self._at += size - missing
        return b"".join(parts)

    def seek(self, offset: int, /) -> int:
        """Go to a byte by inflating what lies before, and return its place, which is the size where there is none."""
        if offset < self._at:
            self._raw.seek(0)
            self._member, self._at = self._begin(), 0
        while self._at < offset and self.read(min(CHUNK, offset - self._at)):
            pass
        return self._at

    def _next(self, most: int) -> bytes:
        """Return some bytes, none at the end."""
        while True:
            stored = b""
            if self._member.eof:
                if not (stored := self._behind()):
                    return b""
                self._member = self._begin()
            elif self._member.needs_input and not (stored := self._raw.read(CHUNK)):
                raise EOFError
            try:
                data = self._member.decompress(stored, most)
            except self._failures as error:
                raise DamagedError(str(error)) from error
            if data:
                return data

    def _behind(self) -> bytes:
        """Return stored bytes from the beginning of the next member on, none where there is no other."""
        rest, zeros = self._member.unused_data or self._raw.read(CHUNK), 0
        while self._padding and rest and not (kept := rest.lstrip(b"\0")):
            zeros, rest = zeros + len(rest), self._raw.read(CHUNK)
        if self._padding and rest:
            zeros, rest = zeros + len(rest) - len(kept), kept
        if self._padding and zeros % self._padding:
            raise DamagedError(f"{zeros} zeros follow a member, where multiples of {self._padding} may")
        return rest
