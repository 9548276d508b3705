"""Files of JSON lines, one record of a step in each: added to, and read from their end.

A file grows by some 450 bytes for each record, to 900 MB in 2 million. What a resume needs stands at its end, and what
a crash of the machine damages too: so 4 MiB are read, and more only where the records to be dropped are more.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import JsonValue

from ...datasets.files import whole
from ..checkpoints import Folder

END_BYTES = 2**22  # about 9,000 records; read and parsed in 0.1 s
Record = dict[str, JsonValue]


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        at: byte that it begins at.
        text: without its line break.
        step: that its record is of; -1: it is damaged.
    """

    at: int
    text: bytes
    step: int


def record_of(text: bytes) -> Record | None:
    """Return the record that a line holds; None where it is no JSON object with the number of a step."""
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(step := found.get("step")) is int and step >= 0 else None


def lines_from(file: Path, start: int) -> Iterator[Line]:
    """Yield the lines that begin at byte `start` or later, all but empty ones."""
    with file.open("rb") as opened:
        at = max(start - 1, 0)
        opened.seek(at)
        if start:
            at += len(opened.readline())  # the rest of a line that begins before
        for text in opened:
            if text != b"\n":
                record = record_of(text)
                yield Line(at, text.rstrip(b"\n"), cast(int, record["step"]) if record else -1)
            at += len(text)


def end_of(file: Path, step: int) -> list[Line]:
    """Return the last lines of a file, back to a record of `step` or before and of at least 4 MiB, or all.

    The texts of later records are left out: there may be 2 million of them.
    """
    size, length = file.stat().st_size, END_BYTES
    while True:
        start = max(size - length, 0)
        lines = [line if line.step <= step else line._replace(text=b"") for line in lines_from(file, start)]
        if start == 0 or any(0 <= line.step <= step for line in lines):
            return lines
        length *= 4


def last_record(file: Path) -> Record:
    """Return the last record of a file; empty where it holds none, or is not there."""
    lines = [line for line in end_of(file, 2**63) if line.step >= 0] if file.is_file() else []
    return (record_of(lines[-1].text) or {}) if lines else {}


def append_record(file: Path, record: Record) -> None:
    """Add a record: a whole line, on one of its own, or nothing. Raises OSError."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    if file.exists() and (size := file.stat().st_size):
        with file.open("rb") as opened:
            opened.seek(size - 1)
            line = line if opened.read() == b"\n" else b"\n" + line  # behind half a line, which is damaged as it is
    append(file, line)


def append(file: Path, data: bytes) -> None:
    """Add bytes to a file, all or none. Raises OSError."""
    size = file.stat().st_size if file.exists() else 0
    try:
        with file.open("ab") as opened:
            opened.write(data)
    except OSError:
        with suppress(OSError):
            os.truncate(file, size)
        raise


def forget_after(file: Path, step: int) -> list[str]:
    """Drop the records of steps after `step`; at step 0 set the file aside.

    A damaged line (half of one, bytes that a crash left) goes to `<file>.damaged`, and what follows it stays. It is
    looked for in what is read, the last 4 MiB at least.

    Returns:
        A message where lines were damaged.

    Raises:
        OSError: the file cannot be read or written; it is as it was.
    """
    if not file.exists():
        return []
    if step == 0:
        Folder(file.parent).set_aside(file.name)
        return []
    lines = end_of(file, step)
    damaged = [line for line in lines if line.step < 0]
    kept = [line for line in lines if 0 <= line.step <= step]
    if not damaged and len(kept) == len(lines):
        return []
    begin = lines[0].at
    if kept and kept == lines[: len(kept)]:
        begin, kept = kept[-1].at + len(kept[-1].text) + 1, []
    if damaged:
        keep_beside(file.with_name(f"{file.name}.damaged"), damaged)
    if kept:
        rewrite_from(file, begin, kept)
    else:
        os.truncate(file, begin)
    if not damaged:
        return []
    where = ", ".join(str(line.at) for line in damaged[:3]) + (", ..." if damaged[3:] else "")
    return [f"{file}: {len(damaged)} damaged line(s), at byte {where}, are in {file.name}.damaged now"]


def keep_beside(file: Path, lines: list[Line]) -> None:
    """Add lines to a file, as they are, and see them on the disk."""
    with file.open("ab") as opened:
        opened.writelines(line.text + b"\n" for line in lines)
        opened.flush()
        os.fsync(opened.fileno())


def rewrite_from(file: Path, begin: int, lines: list[Line]) -> None:
    """Replace what stands from byte `begin` on by lines; a reader, or a crash, finds the old file or the new one."""
    with whole(file) as partial, file.open("rb") as old, partial.open("wb") as new:
        shutil.copyfileobj(old, new, 2**20)
        new.truncate(begin)
        new.seek(begin)
        new.writelines(line.text + b"\n" for line in lines)
