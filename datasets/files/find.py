"""Names to files: globs, `{stdlib}`, `{synthetic}`, `~` and URLs become a sorted list with sizes."""

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...base import is_withheld, public_name
from ..errors import DataError
from .redirects import file_system

# What is not inflated would be read as text, byte for byte.
FOREIGN_COMPRESSION = (".bz2", ".xz", ".zip", ".lz4", ".7z", ".br", ".snappy")
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


def is_remote(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def plain_name(path: str) -> str:
    """Return a path or URL in lower case and without the query of a URL: its ending tells the compression."""
    return (urlsplit(path).path if is_remote(path) else path).lower()


def is_compressed(path: str) -> bool:
    """Tell by its name whether a file is inflated while it is read."""
    return plain_name(path).endswith((".gz", ".bgz", ".zst", ".zstd"))


def local_path(path: str) -> str | None:
    """Return the local path that a path or file:// URL means, None of other URLs."""
    if not is_remote(path):
        return path
    return str(file_system(path)[1]) if path.startswith(("file://", "local://")) else None


def find_files(pattern: str, folder_glob: str | None, private_redirects: bool = False) -> list[DataFile]:
    """Return the files that one pattern names, local ones without a stamp; see `files.FileStore.expand`."""
    target = pattern.replace("{stdlib}", sysconfig.get_paths()["stdlib"])
    if "{synthetic}" in target:
        target = target.replace("{synthetic}", _synthetic())
    remote = is_remote(target)
    if is_withheld(target):
        raise DataError(f"{WITHHELD}; name it in full in the TOML or on the command line", file=target)
    try:
        filesystem, root = file_system(target if remote else str(Path(target).expanduser()), private_redirects)
    except RuntimeError:
        raise DataError("there is no such user, whose home folder `~` would be", file=target) from None
    except ImportError as error:
        raise DataError(f"the fsspec driver of this URL is not installed: {error}", file=target) from None
    except ValueError as error:
        known = "spell it as file://, s3://, gs://, https://, ..., or install the fsspec driver that provides it"
        raise DataError(f"{error}; {known}", file=target) from None

    # A question mark in https://... opens a query.
    path, wild = (root.partition("?")[0], "*[") if root.startswith(("http://", "https://")) else (root, "*?[")
    if not any(character in path for character in wild) or filesystem.exists(root):
        try:
            info = filesystem.info(root)
        except FileNotFoundError:
            if remote:  # maybe only for now
                raise
            raise DataError("there is no such file", file=target) from None
        except OSError as error:
            if remote:
                raise
            raise DataError(f"cannot be read: {error.strerror}", file=target) from None  # links in a circle, a name too long
        if info["type"] == "other":
            raise DataError("this is a pipe or a device, where a file is read; write it to a file", file=target)
        if info["type"] != "directory":
            file = _file(filesystem, info, remote)
            if file.size == 0:
                raise DataError("this file is empty (0 bytes)", file=target)
            return [file]
        if folder_glob is None:
            raise DataError("this is a folder; name its files with a pattern such as folder/*.jsonl", file=target)
        root = f"{root.rstrip('/')}/{folder_glob}"

    listing = filesystem.glob(root, detail=True)
    try:
        # Of a link, `glob` tells that it is one and `info` what it leads to: data folders are often made of links.
        found = [filesystem.info(path) if _unresolved(info) else info for path, info in listing.items()]
    except FileNotFoundError as error:
        raise DataError("this link leads nowhere", file=error.filename or pattern) from None
    matches = [_file(filesystem, info, remote) for info in found if info["type"] == "file"]
    if not matches:
        where = f"this folder holds no {folder_glob}" if folder_glob else "this pattern matches no file"
        raise DataError(where, file=pattern)
    return matches


def _synthetic() -> str:
    from ..synthetic import cached  # few jobs need it

    try:
        return str(cached())
    except OSError as error:
        raise DataError(f"its files cannot be made in the user's cache: {error}", file="{synthetic}") from None


def _unresolved(info: Mapping[str, Any]) -> bool:
    return bool(info["type"] != "directory" and (info.get("islink") or info["type"] != "file" or info["size"] is None))


def _file(filesystem: Any, info: Mapping[str, Any], remote: bool) -> DataFile:
    path = str(filesystem.unstrip_protocol(info["name"])) if remote else str(info["name"])
    if not isinstance(info["size"], int):
        raise DataError("its file system states no size; copy it to a store that does", file=path)
    if plain_name(path).endswith(FOREIGN_COMPRESSION):
        raise DataError("of compressed files .gz, .bgz and .zst are read; compress it by one of them", file=path)
    if not remote:
        return DataFile(path, info["size"], "")
    told = [[f"{key}={info[key]}" for key in keys if info.get(key)] for keys in (CONTENT_FIELDS, VERSION_FIELDS)]
    return DataFile(path, info["size"], ",".join(told[0] or told[1]))
