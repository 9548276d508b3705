"""Folders of checkpoints, on a disk or behind an fsspec URL (`s3://bucket/run`, `gs://`, `memory://`)."""

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import xxhash

from ...base import Json, is_withheld, json_object
from ...datasets.files import Lock, file_system, sync, whole
from ..errors import CheckpointError

PIECE_BYTES = 2**24


class Folder:
    """A folder by its path or URL.

    Args:
        path: as a user writes it; a leading `~` stands for the home folder.

    Raises:
        CheckpointError: it is a URL of a store that fsspec does not know, or whose driver is not installed.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        given = re.sub(r"^(file|local)://", "", os.fspath(path)).rstrip("/") or "/"
        self.path = str(Path(given).expanduser()) if given.startswith("~") else given
        if is_withheld(self.path):
            raise CheckpointError(f"{self.path}: *** stands for credentials, which are kept nowhere; name the folder in full")
        self.is_local = "://" not in self.path
        try:
            self.filesystem: Any = file_system(self.path)[0]
        except (ImportError, ValueError) as e:
            raise CheckpointError(f"{self.path}: {e}") from None

    def __truediv__(self, name: str) -> "Folder":
        """Return the folder `name` inside; an absolute path or a URL stands for itself."""
        if "://" in name or Path(name).is_absolute():
            return Folder(name)
        return Folder(f"{self.path}/{name}")

    def __str__(self) -> str:
        """Return the path as the user wrote it."""
        return self.path

    def __fspath__(self) -> str:
        """Return the path as the user wrote it."""
        return self.path

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a folder of the same path."""
        return isinstance(other, Folder) and other.path == self.path

    def __hash__(self) -> int:
        """Return the hash of the path."""
        return hash(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Folder":
        """The folder that this one is in."""
        return Folder(self.path.removesuffix(self.name))

    def exists(self) -> bool:
        """Return whether there is such a folder; an object store knows folders by what is in them."""
        self.filesystem.invalidate_cache()
        return bool(self.filesystem.isdir(self.path))

    def names(self) -> list[str]:
        """Return the names of what is inside, sorted; none if the folder is not there."""
        self.filesystem.invalidate_cache()
        try:
            found: Iterable[str] = self.filesystem.ls(self.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, None if there is no such file."""
        try:
            info = self.filesystem.info(f"{self.path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def make(self, parents: bool = False) -> None:
        """Create the folder, unless it is there.

        Raises:
            OSError: it cannot be; without `parents`, also where the folder around it is gone.
        """
        if not self.is_local:
            self.filesystem.makedirs(self.path, exist_ok=True)
        elif parents:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        else:
            Path(self.path).mkdir(exist_ok=True)

    def remove(self) -> None:
        """Delete the folder and what is in it, if it is there."""
        with suppress(FileNotFoundError):
            if self.is_local:
                shutil.rmtree(self.path)
                return
            for file in self.filesystem.find(self.path):  # `rm` would take a [ in the name for a pattern
                self.filesystem.rm_file(file)
            self.filesystem.rmdir(self.path)

    def set_aside(self, name: str) -> "Folder":
        """Rename a file or folder inside to the first free of `<name>.aside`, `<name>.aside1`, ...; return it."""
        taken = set(self.names())
        free = next(new for n in itertools.count() if (new := f"{name}.aside{n or ''}") not in taken)
        place = self / free
        if self.is_local:
            Path(self.path, name).rename(place.path)
            return place
        root = self.filesystem._strip_protocol(f"{self.path}/{name}")
        for file in self.filesystem.find(root):
            self.filesystem.cp_file(file, self.filesystem._strip_protocol(place.path) + file.removeprefix(root))
        (self / name).remove()
        return place

    def open(self, name: str, mode: str = "rb") -> IO[bytes]:
        """Open a file for reading or writing bytes."""
        return cast("IO[bytes]", self.filesystem.open(f"{self.path}/{name}", mode))

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def read_json(self, name: str) -> Json:
        """Return the object that a JSON file holds. Raises CheckpointError where it holds none or cannot be read."""
        try:
            data = self.read(name)
        except OSError as e:
            raise CheckpointError(f"{self / name}: not readable: {e}") from None
        return json_object(data, str(self / name), CheckpointError)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.path}/{name}")

    def write(self, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Write a file and flush it to the disk; returns its bytes and xxh3_128.

        A reader may find half of it.
        """
        digest, size = xxhash.xxh3_128(), 0
        with self.open(name, "wb") as file:
            for piece in pieces:
                for start in range(0, len(piece), PIECE_BYTES):
                    part = piece[start : start + PIECE_BYTES]
                    digest.update(part)
                    file.write(part)
                size += len(piece)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())
        return size, digest.hexdigest()

    def write_atomically(self, name: str, text: str) -> tuple[int, str]:
        """Write a text and move it into place: readers see the old file or the new one.

        Returns its bytes and xxh3_128.
        """
        if not self.is_local:  # stores show an object when it is whole
            return self.write(name, [text.encode()])
        with whole(Path(self.path, name)) as partial:
            return self.write(partial.name, [text.encode()])

    def digest(self, name: str) -> str:
        """xxh3_128 of a file, read in pieces."""
        digest = xxhash.xxh3_128()
        with self.open(name) as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()


@contextmanager
def atomic_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out`; when the block ends well, it becomes `out`, whole.

    A lock beside `out` keeps a second writer away. The folder has a name of its own, so that not even a writer whose
    lock was taken over mixes its files with another's. A block that fails, a full disk included, leaves `out` as it
    was. One that is killed leaves `<out>.<16 digits>.partial`, which the next one removes; or, killed between the two
    renames that replace an older `out`, that one as `<out>.<16 digits>.former`, which the next one renames back first.

    Args:
        out: the folder; what is there must be an empty folder.
        replace: whether it may be anything.

    Raises:
        InUseError: another process writes it.
        CheckpointError: it cannot be written: what the system said of which file; or something is there.
    """
    out = out.absolute()
    partial, former = (out.with_name(f"{out.name}.{secrets.token_hex(8)}.{state}") for state in ("partial", "former"))
    try:
        with Lock(out.parent, f"{out.name}.lock", "; wait for its end, or name another folder"):
            clear_up(out)
            if not replace and out.exists() and any(out.iterdir()):
                raise CheckpointError(f"{out}: exists already; it was written meanwhile")
            try:
                partial.mkdir()
                yield partial
                for path in (*partial.rglob("*"), partial):
                    sync(path)
                if replace and out.exists():
                    out.rename(former)
                partial.rename(out)  # which an empty folder gives way to, and nothing else
                sync(out.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                clear_up(out)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise CheckpointError(f"{out}: not written: {error.strerror or error}{where}") from None


def clear_up(out: Path) -> None:
    """Remove what writers of `out` have left, and give back a former `out` that none has replaced."""
    ours = re.compile(rf"{re.escape(out.name)}\.[0-9a-f]{{16}}\.(partial|former)")
    for path in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        if path.suffix == ".former" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)
