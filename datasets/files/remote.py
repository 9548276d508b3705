"""Remote files: read ahead in blocks, and tried again when the network or the store fails."""

import io
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from typing_extensions import override

from ..errors import DataError
from .redirects import RedirectError, file_system

READ_AHEAD_BYTES = 2**23
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a store is given to answer.

    Attributes:
        retries: Times that a failed access is tried again.
        delay: Seconds before the first of them; each further one waits twice as long.
        timeout: Seconds after which an access without an answer has failed.
    """

    retries: int
    delay: float
    timeout: float

    def __call__(self, access: Callable[[], T], path: str) -> T:
        """Return what `access` does.

        Raises:
            DataError: `path` does not exist, or may not be read, or the last try failed as well.
        """
        for tried in range(self.retries + 1):
            try:
                return _within(self.timeout, access)
            except DataError:
                raise
            except Exception as error:
                if _is_absent(error):
                    raise DataError("there is no such file", file=path) from error
                if refused := _redirect(error):
                    raise DataError(f"cannot be read: {refused}", file=path) from error
                if isinstance(error, (PermissionError, IsADirectoryError)):
                    raise DataError(f"cannot be read: {_said(error)}", file=path) from error
                if tried == self.retries:
                    reason = _said(error.__cause__ or error)
                    raise DataError(f"cannot be read, after {tried + 1} tries: {reason}", file=path) from error
                time.sleep(self.delay * 2**tried * random.uniform(0.5, 1.0))  # not all ranks at once
        raise AssertionError("unreachable")


def _is_absent(error: Exception) -> bool:
    """Tell a file that is not there from a server that is not: fsspec's http says FileNotFoundError of both."""
    cause = error.__cause__
    return isinstance(error, FileNotFoundError) and (cause is None or getattr(cause, "status", None) in (404, 410))


def _redirect(error: BaseException | None) -> RedirectError | None:
    """Return the redirect that was refused, where an error comes of one."""
    while error is not None and not isinstance(error, RedirectError):
        error = error.__cause__
    return error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _within(seconds: float, access: Callable[[], T]) -> T:
    """Return what `access` does, or raise what it raises, or TimeoutError: then its thread is left behind."""
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((access(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=work, daemon=True, name="cistron-remote").start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


class RemoteFile(io.RawIOBase):
    """The stored bytes of a URL; a failed read goes on where it was, through a new connection.

    Args:
        path: The URL.
        patience: With the store.
        private_redirects: As `redirects.file_system` has it.
    """

    def __init__(self, path: str, patience: Patience, private_redirects: bool = False) -> None:
        self._path = path
        self._patience = patience
        self._at = 0
        self._handle: Any = None
        self._filesystem, self._root = file_system(path, private_redirects)
        self._from_start_only = False
        self.size: int = patience(lambda: self._filesystem.info(self._root)["size"], path)
        if not isinstance(self.size, int):
            raise DataError("its file system states no size; copy it to a store that does", file=path)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end.

        Raises:
            DataError: They cannot be had, however often one tries.
        """
        missing = max(0, self.size - self._at)
        if size is not None and size >= 0:
            missing = min(missing, size)
        parts = []
        while missing > 0:
            self._handle, part = self._patience(partial(self._attempt, missing), self._path)
            parts.append(part)
            missing -= len(part)
            self._at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _attempt(self, count: int) -> tuple[Any, bytes]:
        """Return a handle that works, and up to `count` bytes; none if it had to come nearer by reading."""
        handle, self._handle = self._handle, None
        if handle is None or (self._from_start_only and handle.tell() > self._at):
            handle = self._open()
        behind = self._at - handle.tell() if self._from_start_only else 0
        try:
            if not self._from_start_only:
                handle.seek(self._at)
            data: bytes = handle.read(min(behind, READ_AHEAD_BYTES) if behind else count)
        except ValueError:  # so fsspec says that a server answers every request by the file's beginning
            self._from_start_only = self._root.startswith("http")
            raise
        if not data:
            raise OSError(f"ends at byte {self._at} of {self.size}")
        return handle, b"" if behind else data

    def _open(self) -> Any:
        if self._from_start_only:
            return self._filesystem.open(self._root, "rb", block_size=0)
        handle = self._filesystem.open(self._root, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
        if getattr(handle, "size", None) is None:
            self._from_start_only = self._root.startswith("http")
        elif handle.size != self.size:
            raise DataError(f"had {self.size} bytes and now {handle.size}: it changed while it was read", file=self._path)
        return handle

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a byte; nothing is fetched."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def close(self) -> None:
        handle, self._handle = self._handle, None
        with suppress(Exception):
            if handle is not None:
                handle.close()
        super().close()
