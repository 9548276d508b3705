"""JSON and TOML that may come from anywhere, read under limits.

A path is opened only if it leads to a file: a pipe or a device may never end. At most so many bytes are read, they must
be UTF-8, and what is parsed is bounded in depth and in the digits of its numbers, so that nothing after it meets a
RecursionError, an infinity that nobody wrote on purpose, or an integer that Python refuses to print. What does not hold
is an error of the caller's kind: file, place, what was found, what would be right.
"""

import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Json: TypeAlias = dict[str, Any]  # an object as it was written, before anybody has validated it
Record = TypeVar("Record", bound=BaseModel)
TOML_BYTES = 2**20
JSON_BYTES = 2**26  # small objects take up to 25 times as much memory as text: 1.6 GiB at the worst
LISTING_BYTES = 2**28  # of a file of ours that names every file of a corpus
DEPTH = 64  # of nested tables, lists and objects; Python and pydantic recurse to 200 and more
# Some tokenizers write 10^30 for "unlimited"; a float, which some numbers become, overflows from 10^308 on.
DIGITS = 100
LONG = re.compile(rb"[0-9]{%d}" % (DIGITS + 1))
LFS = b"version https://git-lfs.github.com/spec/"
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# A string, or a comment, of a TOML: brackets and dots in it mean nothing.
TOML_TEXT = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)


def no_file(mode: int) -> str | None:
    """Return what a path leads to that cannot be read like a file, by its `st_mode`; None for a file."""
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: str | os.PathLike[str], error: type[UserError], most: int = JSON_BYTES) -> bytes:
    """Return the bytes of a file.

    Args:
        path: of the file.
        error: kind of what is raised.
        most: bytes that a file of its kind may have.

    Raises:
        UserError: of kind `error`: there is no such file, it is none (a pipe, a device), it cannot be read, or is
            larger.
    """
    where = os.fspath(path)
    try:
        if (other := no_file(Path(where).stat().st_mode)) is not None:
            raise error.about(where, f"this is {other}, where a file is read")
        with Path(where).open("rb") as file:
            data = file.read(most + 1)
    except OSError as problem:
        raise error.about(where, f"cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        if isinstance(problem, UserError):
            raise
        raise error.about(where, f"cannot be read: {problem}") from None  # a NUL in the path
    if len(data) > most:
        raise error.about(where, f"has more than the {most:,} bytes that a file of its kind may have")
    return data


def json_of(data: bytes, where: str, error: type[UserError], *, finite: bool = True) -> Any:
    """Return the value that a JSON text states.

    Args:
        data: the text.
        where: path of the file, for messages.
        error: kind of what is raised.
        finite: whether NaN, infinities, and numbers that only become infinite (1e999), are refused.

    Raises:
        UserError: of kind `error`: it is empty, no UTF-8, no JSON, nested too deeply, has a number that is too long or
            not finite, a key twice, or half a surrogate pair.
    """

    def integer(text: str) -> int:
        if len(text) > DIGITS:
            raise _Refused(f"an integer of {len(text)} digits, {text[:20]}...; at most {DIGITS} are read")
        return int(text)

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise _Refused(f"the number {text[:40]}; numbers must be finite")
        return value

    def table(pairs: list[tuple[str, Any]]) -> Json:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _Refused(f"the key {twice[:60]!r} twice in one object; remove one of them")
        return values

    text = text_of(data, where, error)
    whole = integer if LONG.search(data) else int  # which json's own scanner takes twice as fast
    try:
        content = json.loads(text, parse_int=whole, parse_float=number, parse_constant=number, object_pairs_hook=table)
        _check_depth(content)
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(content, ensure_ascii=False).encode()
    except _Refused as problem:
        raise error.about(where, f"this JSON has {problem}") from None
    except RecursionError:
        raise error.about(where, f"this JSON has {TOO_DEEP}") from None
    except UnicodeEncodeError:
        raise error.about(where, "this JSON has half a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except ValueError as problem:
        raise error.about(where, f"not valid JSON: {problem}") from None
    return content


def json_object(data: bytes, where: str, error: type[UserError], *, finite: bool = True) -> Json:
    """Return the object that a JSON text states; raises as `json_of`, and for anything but an object."""
    content = json_of(data, where, error, finite=finite)
    if not isinstance(content, dict):
        raise error.about(where, f"holds {named(content)}, not a JSON object")
    return content


def read_json(path: str | os.PathLike[str], error: type[UserError], most: int = JSON_BYTES) -> Json:
    """Return the object in a JSON file; raises as `read_bytes` and `json_object`."""
    return json_object(read_bytes(path, error, most), os.fspath(path), error)


def json_record(model: type[Record], data: bytes, where: str, error: type[UserError]) -> Record:
    """Return the record that a JSON text of ours states.

    Args:
        model: declares its keys.
        data: the text.
        where: path of the file, for messages.
        error: kind of what is raised.

    Raises:
        UserError: of kind `error`: as `json_object`; or a key is missing, unknown, or has a value of another type or
            beyond its limits: the first five are named.
    """
    json_object(data, where, error)
    try:
        return model.model_validate_json(data)
    except ValidationError as problem:
        lines = problems(problem)
        more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise error.about(where, "; ".join([*lines[:5], *more])) from None


def read_toml(path: str | os.PathLike[str], error: type[UserError]) -> Json:
    """Return what a TOML file states.

    Infinities and NaN are left to the types of the keys, whose message names the key.

    Raises:
        UserError: of kind `error`: as `read_bytes`; or it is no UTF-8, no TOML, nested too deeply, or has an integer
            that is too long.
    """
    where = os.fspath(path)
    text = text_of(read_bytes(path, error, TOML_BYTES), where, error, empty=True)
    try:
        # Before it is parsed: Python's parser recurses, and takes time by the square of the parts of a dotted key.
        _check_toml_depth(text)
        content = tomllib.loads(text)
        _check_depth(content)
    except _Refused as problem:
        raise error.about(where, f"this TOML has {problem}") from None
    except RecursionError:
        raise error.about(where, f"this TOML has {TOO_DEEP}") from None
    except ValueError as problem:
        raise error.about(where, f"not valid TOML: {problem}") from None
    return content


def bounded(content: Any, where: str, error: type[UserError]) -> None:
    """Raise an error of kind `error` where values that something else has parsed are nested too deeply or too long."""
    try:
        _check_depth(content)
    except _Refused as problem:
        raise error.about(where, f"has {problem}") from None


def problems(error: ValidationError) -> list[str]:
    """Return a line for each value that a model refuses: its place, what was found, what would be right."""
    return [f"{'.'.join(map(str, each['loc']))} = {shown(each['input'])}: {each['msg']}" for each in error.errors()]


def shown(value: object, most: int = 80) -> str:
    """Return a value as a message shows it: of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def named(value: object) -> str:
    """Return what kind of JSON a value is."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


TOO_DEEP = f"tables, lists or objects nested more than {DEPTH} deep"


class _Refused(Exception):
    """What a text has that is within its language, and beyond our limits."""


def text_of(data: bytes, where: str, error: type[UserError], empty: bool = False) -> str:
    """Return UTF-8 as text.

    Args:
        data: of a file.
        where: path of the file, for messages.
        error: kind of what is raised.
        empty: whether there may be none.

    Raises:
        UserError: of kind `error`: it is empty, a pointer of git-lfs, begins with a byte order mark, or is no UTF-8.
    """
    if not data and not empty:
        raise error.about(where, "is empty (0 bytes)")
    if data.startswith(LFS):
        raise error.about(where, "this is a pointer of git-lfs, not the file itself: run `git lfs pull` where it was cloned")
    if data.startswith(b"\xef\xbb\xbf"):
        raise error.about(where, "begins with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise error.about(where, f"is not UTF-8: byte {problem.start} is 0x{data[problem.start]:02x}") from None


def _check_depth(content: Any) -> None:
    """Refuse what is nested more than `DEPTH` deep, and integers that are too long: by levels, not by recursion."""
    level, limit = [content], 10**DIGITS
    for _ in range(DEPTH + 1):
        below: list[Any] = []
        for node in level:
            below += _children(node)
        level = [child for child in below if type(child) in (dict, list)]
        if any(type(child) is int and abs(child) >= limit for child in below):
            raise _Refused(f"an integer of more than {DIGITS} digits")
        if not level:
            return
    raise _Refused(TOO_DEEP)


def _children(node: Any) -> Iterable[Any]:
    return node.values() if type(node) is dict else node if type(node) is list else ()


def _check_toml_depth(text: str) -> None:
    plain = TOML_TEXT.sub("_", text)
    if any(part.count(".") > DEPTH for part in re.split(r"[\n,={}]", plain)):
        raise _Refused(f"a key of more than {DEPTH} parts")
    depth = 0
    for bracket in re.findall(r"[\[{\]}]", plain):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            raise _Refused(TOO_DEEP)
