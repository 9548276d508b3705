"""Names to files: paths, globs, folders, `{stdlib}`, `{synthetic}`, `~` and URLs become a list of files with sizes."""

import os
import stat
import sysconfig
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...base import is_withheld, public_name
from ..errors import DataError
from .globs import WILD, hidden, is_glob, matching
from .redirects import file_system

# By their endings, what compressed files hold; of others the bytes would be read as text.
COMPRESSION = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".xz": "xz", ".bz2": "bzip2"}
FOREIGN_COMPRESSION = (".lzma", ".zip", ".lz4", ".7z", ".rar", ".br", ".snappy", ".z", ".lzo")
ARCHIVES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
A_FOLDER = "this is a folder; name its files with a pattern such as folder/*.jsonl"
WITHHELD = "*** stands for credentials, which are kept nowhere"
# What stores tell of a file's content and else of its version, in fsspec's `info`. Times of reading are not among them.
CONTENT_FIELDS = (
    *("md5", "md5Hash", "content_md5", "Content-MD5", "checksum", "sha256", "oid", "blob_id", "crc32c", "ETag", "etag"),
)
VERSION_FIELDS = ("generation", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "mtime", "created")


class DataFile(NamedTuple):
    """A file as found.

    Attributes:
        path: Path or URL.
        size: Bytes as stored (before decompression).
        stamp: Of the content; another one means that it changed. Of a local file a hash, see `inventory.stamped`; of a
            remote one what its store tells of the content (a checksum, an ETag), else of the version. Empty where it
            tells nothing.
    """

    path: str
    size: int
    stamp: str

    @property
    def public(self) -> "DataFile":
        """The file under the name that is kept and compared: a URL without credentials."""
        return self._replace(path=public_name(self.path))


class FolderRule(NamedTuple):
    """For which of its files a folder stands that is named as a path.

    Attributes:
        glob: Which names are looked at, from the folder on; None: a folder is refused.
        endings: What they must end in, compression aside.
    """

    glob: str | None = None
    endings: tuple[str, ...] = ("",)

    def among(self, files: Iterable[DataFile], folder: str) -> list[DataFile]:
        """Return the files that a folder stands for. Raises DataError where there are none."""
        if found := [file for file in files if uncompressed_name(file.path).endswith(self.endings)]:
            return found
        names = self.glob if self.endings == ("",) else ", ".join(f"*{ending}" for ending in self.endings)
        raise DataError(f"this folder holds no {names}; name its files with a pattern such as folder/**/*", file=folder)


def is_remote(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def plain_name(path: str) -> str:
    """Return a path or URL in lower case and without the query of a URL: its ending tells the compression."""
    return (urlsplit(path).path if is_remote(path) else path).lower()


def compression(path: str) -> str | None:
    """Return by which means a file is compressed, as its name tells; None: it is not."""
    return COMPRESSION.get(f".{plain_name(path).rpartition('.')[2]}")


def is_compressed(path: str) -> bool:
    """Tell by its name whether a file is inflated while it is read."""
    return compression(path) is not None


def uncompressed_name(path: str) -> str:
    """Return `plain_name` without the ending of a compression: its ending tells the format."""
    name = plain_name(path)
    return name.rpartition(".")[0] if is_compressed(path) else name


def local_path(path: str) -> str | None:
    """Return the local path that a path or file:// URL means, None of other URLs."""
    if not is_remote(path):
        return path
    scheme, _, rest = path.partition("://")
    return rest if scheme in ("file", "local") else None


def find_files(pattern: str, folder: FolderRule, private_redirects: bool = False) -> list[DataFile]:
    """Return the files that one pattern names, local ones without a stamp; see `files.FileStore.expand`."""
    target = pattern
    if not is_remote(pattern) and not os.path.lexists(pattern):
        target = target.replace("{stdlib}", sysconfig.get_paths()["stdlib"])
        if "{synthetic}" in target:
            target = target.replace("{synthetic}", _synthetic())
    if is_withheld(target):
        raise DataError(f"{WITHHELD}; name it in full in the TOML or on the command line", file=target)
    path = local_path(target)
    found = _remote_files(target, folder, private_redirects) if path is None else _local_files(path, folder)
    if not found:
        raise DataError("this pattern matches no file", file=pattern)
    return found


def real_path(path: str, folders: dict[str, str]) -> str:
    """Return the path of a local file without links; `folders` keeps those of folders from one call to the next."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    path = os.path.join(folders[folder], name)  # noqa: PTH118 (of 10^5 files, a Path takes a second)
    return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


def _local_files(path: str, folder: FolderRule) -> list[DataFile]:
    """Return the files of a local path, which may be a pattern; what exists by the very name is taken."""
    nobody = False
    if path.startswith("~") and not os.path.lexists(path):
        home = os.path.expanduser(path)  # noqa: PTH111 (a name of a file may begin so too)
        path, nobody = home, home == path
    base, below = ("/", path[1:]) if path.startswith("/") else (os.getcwd(), path)  # noqa: PTH109 (may hold a `*`)
    path = os.path.join(base, below)  # noqa: PTH118 (a Path drops `..` behind a link's back)
    if os.path.lexists(path) or not is_glob(below):
        if nobody:
            raise DataError("there is no such user, whose home folder `~` would be", file=below)
        if (file := _local_file(path, named=True)) is not None:
            return [file]
        if folder.glob is None:
            raise DataError(A_FOLDER, file=path)
        return folder.among([file for each in matching(path, folder.glob) if (file := _local_file(each))], path)
    matches = matching(base, below)
    found = [file for each in matches if (file := _local_file(each))]
    if matches and not found:
        raise DataError("this pattern matches folders only; name their files, such as folder/**/*.jsonl", file=path)
    if nobody and not found:
        raise DataError("there is no such user, whose home folder `~` would be", file=below)
    return found


def _local_file(path: str, named: bool = False) -> DataFile | None:
    """Return a local file, or None of a folder; one of its own name, not out of a pattern, must have bytes."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise DataError("this link leads nowhere" if os.path.lexists(path) else "there is no such file", file=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None  # links in a circle, a name too long
    except ValueError as error:
        raise DataError(f"is no name of a file: {error}", file=path) from None
    if stat.S_ISDIR(info.st_mode):
        return None
    if not stat.S_ISREG(info.st_mode):
        if not named:
            return None
        raise DataError("this is a pipe or a device, where a file is read; write it to a file", file=path)
    return _file(path, info.st_size, "", named)


def _remote_files(target: str, folder: FolderRule, private_redirects: bool) -> list[DataFile]:
    """Return the files of a URL, which may be a pattern; what exists by the very name is taken."""
    try:
        filesystem, root = file_system(target, private_redirects)
    except ImportError as error:
        raise DataError(f"the fsspec driver of this URL is not installed: {error}", file=target) from None
    except ValueError as error:
        known = "spell it as file://, s3://, gs://, https://, ..., or install the fsspec driver that provides it"
        raise DataError(f"{error}; {known}", file=target) from None
    # A question mark in https://... opens a query.
    path, wild = (root.partition("?")[0], "*[") if root.startswith(("http://", "https://")) else (root, WILD)
    if is_glob(path, wild) and not filesystem.exists(root):
        return _remote_matches(filesystem, root)
    info = filesystem.info(root)
    if info["type"] != "directory":
        return [_remote_file(filesystem, info, named=True)]
    if folder.glob is None:
        raise DataError(A_FOLDER, file=target)
    return folder.among(_remote_matches(filesystem, f"{root.rstrip('/')}/{folder.glob}"), target)


def _remote_matches(filesystem: Any, pattern: str) -> list[DataFile]:
    listing = {path: info for path, info in filesystem.glob(pattern, detail=True).items() if hidden(path) <= hidden(pattern)}
    # Of a link, `glob` tells that it is one and `info` what it leads to.
    found = [filesystem.info(path) if _unresolved(info) else info for path, info in listing.items()]
    return [_remote_file(filesystem, info) for info in found if info["type"] == "file"]


def _synthetic() -> str:
    from ..synthetic import cached  # few jobs need it

    try:
        return str(cached())
    except OSError as error:
        raise DataError(f"its files cannot be made in the user's cache: {error}", file="{synthetic}") from None


def _unresolved(info: Mapping[str, Any]) -> bool:
    return bool(info["type"] != "directory" and (info.get("islink") or info["type"] != "file" or info["size"] is None))


def _remote_file(filesystem: Any, info: Mapping[str, Any], named: bool = False) -> DataFile:
    path = str(filesystem.unstrip_protocol(info["name"]))
    if not isinstance(info["size"], int):
        raise DataError("its file system states no size; copy it to a store that does", file=path)
    told = [[f"{key}={info[key]}" for key in keys if info.get(key)] for keys in (CONTENT_FIELDS, VERSION_FIELDS)]
    return _file(path, info["size"], ",".join(told[0] or told[1]), named)


def _file(path: str, size: int, stamp: str, named: bool) -> DataFile:
    if uncompressed_name(path).endswith(ARCHIVES):
        raise DataError("this is an archive of files by its name; unpack it, and name what it holds", file=path)
    if plain_name(path).endswith(FOREIGN_COMPRESSION):
        raise DataError("of compressed files .gz, .bgz, .zst, .xz and .bz2 are read; compress it by one of them", file=path)
    if named and not size:
        raise DataError("this file is empty (0 bytes)", file=path)
    return DataFile(path, size, stamp)
