"""Files of a corpus: found by pattern, opened wherever they are and however compressed.

gzip and zstd are inflated by Python's own readers, which go back by inflating the file again from the first byte; xz
and bzip2 by `contents`, bgzip by `bgzip`. Python has zstd from 3.14 on; `backports.zstd` is the same module.
"""

import gzip
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Annotated, cast

from pydantic import Field

from ...base import PathText, Table
from ..errors import DataError
from .bgzip import BgzfFile, BlockIndex, ByteFile, DamagedError, block_size, find_blocks
from .cache import find_copy, make_copy
from .contents import HEAD_BYTES, InflatedFile, miscompressed
from .find import DataFile, FolderRule, compression, find_files, is_compressed, local_path, real_path
from .inventory import last_name, stamped
from .redirects import file_system
from .remote import Patience, RemoteFile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# zstd's window, or xz's dictionary, is memory of each lane. Of any file 128 MiB, `zstd --long=27`, as zstd itself
# takes unasked; more, up to the 2 GiB of --long=31, of a file so large that its contents need it.
WINDOW_LOGS = range(27, 32)
WINDOW_SHARE = 16  # a file has at least the 16th part of a larger window
XZ_OWN_BYTES = 2**20  # that xz takes beside its dictionary, at most
# A listing of many files takes many requests.
LISTING_PATIENCE = 10
TOO_LARGE = (
    ("too much memory", "zstd window", f"--long={WINDOW_LOGS[0]}"),
    ("Memory usage limit", "xz dictionary", f"--lzma2=dict={2 ** (WINDOW_LOGS[0] - 20)}MiB"),
)
DAMAGED = "the compressed data is truncated or damaged"


class FileStoreConfig(Table):
    """The keys of `[data]` about remote files."""

    cache_dir: PathText | None = None
    """Folder for copies of remote files; unset: they are read over the network each time."""
    cache_gb: float = Field(default=50.0, gt=0.0, le=1e9)
    """Size that the copies are kept below (10^9 bytes); what was used longest ago goes first."""
    retries: Annotated[int, Field(ge=0, le=16)] = 5
    """Further attempts, at growing intervals, at a remote read that fails."""
    allow_private_redirects: bool = False
    """Whether an http server of the internet may redirect to an address of this host or of a private network."""


@dataclass(frozen=True, eq=False)
class FileStore:
    """Where files are and how they are reached.

    Attributes:
        config: The cache of remote files, and how often a failed access is tried again.
        delay: Seconds before the first of these tries; each further one waits twice as long.
        timeout: Seconds after which an access to a remote file without an answer has failed.
    """

    config: FileStoreConfig = field(default_factory=FileStoreConfig)
    delay: float = 0.5
    timeout: float = 60.0

    def expand(
        self, patterns: Iterable[str], folder_glob: str | None = None, endings: tuple[str, ...] = ("",)
    ) -> list[DataFile]:
        """Return the files that `patterns` name, sorted by path, each once, however many links lead to it, with stamps.

        Args:
            patterns: Paths, globs (see `globs`) or fsspec URLs; `{stdlib}` stands for the folder of Python's standard
                library, `{synthetic}` for that of `synthetic.py`, and a leading `~` for the home folder. What exists by
                that very name is taken.
            folder_glob: Which names of a folder it stands for, from the folder on; None: a folder is refused.
            endings: What these end in, compression aside.

        Raises:
            DataError: A file is missing, is a folder, has no bytes or is compressed by means that are not undone; a
                glob matches nothing, or a folder on its way cannot be listed; a URL's driver is missing or unknown, or
                its store does not answer; two URLs differ only in what is kept secret, so that one could be taken for
                the other.
        """
        found: dict[str, DataFile] = {}
        folders: dict[str, str] = {}
        rule = FolderRule(folder_glob, endings)
        for pattern in patterns:
            listing = partial(find_files, pattern, rule, self.config.allow_private_redirects)
            is_local = local_path(pattern) is not None
            for file in listing() if is_local else self._patience(LISTING_PATIENCE)(listing, pattern):
                # The name without a link is kept, so that it does not hang on where the corpus is mounted.
                real = real_path(file.path, folders) if is_local else file.path
                rank = [(last_name(each.path) != last_name(real), each.path) for each in (file, found.get(real, file))]
                if rank[0] <= rank[1]:
                    found[real] = file
        known: set[str] = set()
        for file in found.values():
            if file.public.path in known:
                raise DataError("two URLs differ only in what is withheld here; name each file once", file=file.public.path)
            known.add(file.public.path)
        return stamped(sorted(found.values(), key=lambda file: file.public))

    def local(self, path: str) -> str:
        """Return a local path to the stored bytes of `path`; those of a URL are copied into the cache if need be.

        Raises:
            DataError: There is no cache, or the file is larger than all of it, or it cannot be fetched.
        """
        if (found := self._find_local(path)) is None:
            problem = "a remote file that must be whole on a local disk, and there is no data.cache_dir to keep it in"
            if self.config.cache_dir is not None:
                problem = f"does not fit into data.cache_gb = {self.config.cache_gb:g} GB, and must be whole on a local disk"
            raise DataError(problem, file=path)
        return found

    @contextmanager
    def open(self, path: str, whole: bool = True) -> Iterator[ByteFile]:
        """Open a path or URL for reading its bytes, uncompressed.

        Args:
            path: Compressed as its name says, see `find.COMPRESSION`.
            whole: Whether so much will be read that a remote file is worth a copy in the cache.

        Raises:
            DataError: The file cannot be opened or read, or its compression is damaged, here or while reading in the
                block.
        """
        with self.open_stored(path, whole) as raw:
            try:
                yield self._uncompressed(path, raw)
            except EOFError:
                unit = {"zstd": "zstd frame", "xz": "stream of xz", "bzip2": "stream of bzip2"}.get(compression(path) or "")
                raise DataError(f"{DAMAGED}: the file ends within a {unit or 'gzip member'}", file=path) from None
            except (DamagedError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
                for said, what, remedy in TOO_LARGE:
                    if said in str(error):
                        problem = (
                            f"its {what} is larger than {2 ** _window_log(raw) // 2**20} MiB, the most of a file of this size"
                        )
                        raise DataError(f"{problem}; compress it again with at most {remedy}", file=path) from None
                raise DataError(f"{DAMAGED}: {error}", file=path) from error

    @contextmanager
    def open_stored(self, path: str, whole: bool = True) -> Iterator[IO[bytes]]:
        """Open a path or URL for reading its bytes as they are stored; see `open`."""
        try:
            local = self._find_local(path) if whole else local_path(path)
            remote = cast("IO[bytes]", self._remote(path)) if local is None else None
            with remote or Path(cast("str", local)).open("rb") as raw:
                yield raw
        except OSError as error:
            raise DataError(f"cannot be read: {error}", file=path) from error

    def _patience(self, factor: int = 1) -> Patience:
        return Patience(self.config.retries, self.delay, self.timeout * factor)

    def _find_local(self, path: str) -> str | None:
        """Return a local path to the stored bytes of `path`, None for a remote file that is not to be copied."""
        if (local := local_path(path)) is not None or (cache_dir := self.config.cache_dir) is None:
            return local
        folder, limit = Path(cache_dir).expanduser(), self.config.cache_gb * 1e9
        [file] = self.expand([path])
        opener = partial(self._remote, path)

        def again() -> DataFile | None:
            [now] = self.expand([path])
            same = now == file or (now.size == file.size and bool(by_time.stamp) and self._by_time(now) == by_time)
            return (file if now == file else by_time) if same else None

        try:
            if (copy := find_copy(folder, file, opener)) is None and file.size <= limit:
                by_time = self._by_time(file)
                copy = find_copy(folder, by_time, opener, by_time=True) if by_time.stamp else None
                copy = copy or make_copy(folder, limit, file, opener, again)
        except OSError as error:
            raise DataError(f"cannot be copied into data.cache_dir: {error}", file=path) from error
        return None if copy is None else str(copy)

    def _by_time(self, file: DataFile) -> DataFile:
        """Return a remote file with its time of last change as stamp; with none where its store tells no time."""
        filesystem, root = file_system(file.path, self.config.allow_private_redirects)
        info = self._patience()(lambda: filesystem.info(root), file.path)
        time = next((str(info[key]) for key in ("Last-Modified", "LastModified", "mtime", "updated") if info.get(key)), "")
        return file._replace(stamp=f"changed at {time}" if time else "")

    def _remote(self, path: str) -> RemoteFile:
        return RemoteFile(path, self._patience(), self.config.allow_private_redirects)

    def _uncompressed(self, path: str, raw: IO[bytes]) -> ByteFile:
        if not is_compressed(path):
            return cast("ByteFile", raw)
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        if (problem := miscompressed(path, head)) is not None:
            raise DamagedError(problem)
        means = compression(path)
        if means == "zstd":
            return zstd.ZstdFile(raw, options={zstd.DecompressionParameter.window_log_max: _window_log(raw)})
        if means in ("xz", "bzip2"):
            return _stream(means, raw, path)
        if block_size(head) is None:
            return gzip.GzipFile(fileobj=raw, mode="rb")
        return BgzfFile(cast("ByteFile", raw), partial(_block_index, self, path, _version(raw)))


def _stream(means: str, raw: IO[bytes], path: str) -> ByteFile:
    stored = cast("ByteFile", raw)
    try:  # Python can be built without either
        if means == "bzip2":
            import bz2

            return InflatedFile(stored, bz2.BZ2Decompressor, OSError)
        import lzma
    except ImportError as error:
        raise DataError(f"this Python was built without {means}: {error}", file=path) from None
    limit = 2 ** _window_log(raw) + XZ_OWN_BYTES
    return InflatedFile(stored, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, limit), lzma.LZMAError, padding=4)


def _window_log(raw: object) -> int:
    """Return the binary logarithm of the largest window that a file of this size may have."""
    size = raw.size if isinstance(raw, RemoteFile) else os.fstat(cast("IO[bytes]", raw).fileno()).st_size
    return max(WINDOW_LOGS[0], min(WINDOW_LOGS[-1], (WINDOW_SHARE * size).bit_length() - 1))


def _version(raw: object) -> int:
    return raw.size if isinstance(raw, RemoteFile) else os.fstat(cast("IO[bytes]", raw).fileno()).st_mtime_ns


@lru_cache(maxsize=64)  # of 16 bytes per 64 KiB
def _block_index(storage: FileStore, path: str, version: int) -> BlockIndex:
    """Return where the blocks of a bgzip file begin, which is found once per process and version of the file."""
    gzi = None
    try:
        with storage.open_stored(path + ".gzi", whole=False) as file:
            gzi = file.read()
    except DataError as error:
        if not isinstance(error.__cause__, (FileNotFoundError, PermissionError)):  # S3 may say the latter of what is absent
            raise
    with storage.open_stored(path, whole=False) as raw:
        return find_blocks(cast("ByteFile", raw), gzi)
