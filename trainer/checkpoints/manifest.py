"""The manifest of a checkpoint: which files it has, their sizes and checksums, and its own.

The names that it may list are those that a checkpoint has, so that nothing outside of its folder is ever opened.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated

import xxhash
from pydantic import BaseModel, ConfigDict, Field

from ...base import json_object, json_record, shown
from ..errors import CheckpointError
from .folder import Folder

MANIFEST, INDEX, STATE, INVENTORY = "manifest.json", "tensors.json", "state.json", "inventory.json"
FORMAT = 2
TENSORS = re.compile(r"rank-[0-9]{5,9}\.safetensors")
Files = Mapping[str, tuple[int, str]]  # bytes and xxh3_128, by name


class Entry(BaseModel):
    """What a manifest says of a file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Manifest(BaseModel):
    """What a manifest says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    files: dict[str, Entry]
    xxh3_128: str


def manifest_text(files: Files) -> str:
    """Return the text of a manifest; its own checksum at the end tells damage of it from damage elsewhere."""
    listing = {name: {"bytes": size, "xxh3_128": digest} for name, (size, digest) in sorted(files.items())}
    own = xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())
    return json.dumps({"format": FORMAT, "files": listing, "xxh3_128": own}, indent=1)


def listed_files(text: bytes) -> dict[str, tuple[int, str]]:
    """Return bytes and checksum of each file that a manifest lists.

    Args:
        text: of the manifest.

    Raises:
        CheckpointError: it is of another format, damaged, or lists what no checkpoint has; the message begins with what
            is wrong, not with the folder.
    """
    try:
        version = json_object(text, MANIFEST, CheckpointError).get("format")
        if version != FORMAT or type(version) is not int:
            newer = ", which a newer version of Cistron writes" if type(version) is int and version > FORMAT else ""
            raise CheckpointError(f"of format {shown(version)}{newer}; this version reads {FORMAT}")
        entries = json_record(Manifest, text, MANIFEST, CheckpointError).files
    except CheckpointError as error:
        found, where, reason = str(error).partition(f"{MANIFEST}: ")
        raise CheckpointError(f"{MANIFEST} is not readable: {reason}" if where and not found else str(error)) from None
    files = {name: (entry.bytes, entry.xxh3_128) for name, entry in entries.items()}
    if manifest_text(files).encode() != text:
        raise CheckpointError(f"{MANIFEST} is damaged: it does not fit the checksum in it")
    texts = {INDEX, STATE, INVENTORY}
    if strange := sorted(name for name in files.keys() - texts if not TENSORS.fullmatch(name)):
        raise CheckpointError(f"{MANIFEST} is not of a checkpoint: it lists {shown(strange[0])}")
    if missing := sorted(texts - files.keys()):
        raise CheckpointError(f"{MANIFEST} is not of a checkpoint: it does not list {missing[0]}")
    return files


def files_of(folder: Folder) -> dict[str, tuple[int, str]]:
    """Return what the manifest in a folder lists. Raises CheckpointError where it cannot be read or believed."""
    try:
        return listed_files(folder.read(MANIFEST))
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST}: not readable: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
