"""Patterns of local files, read as a shell reads them: `*`, `?`, `[...]`, and `**` for any folders in between.

A name that begins with a dot is matched only by a part of the pattern that does so too. Links to folders are followed,
and `**` enters each folder once, under a path without a link where there is one: so a link to a parent ends nowhere.
"""

import os
import re
from collections import deque
from collections.abc import Iterator
from fnmatch import translate

from ..errors import DataError

WILD = "*?["


def is_glob(path: str, wild: str = WILD) -> bool:
    """Tell whether a path has a character of patterns."""
    return any(character in path for character in wild)


def matching(folder: str, pattern: str) -> list[str]:
    """Return what a pattern matches below a folder: files, folders, and links that lead nowhere.

    Raises:
        DataError: A folder on the way cannot be listed.
    """
    parts = [part for part in pattern.split("/") if part]
    return [*dict.fromkeys(_matching(folder, [*parts, "*"] if parts[-1] == "**" else parts))]


def hidden(path: str) -> int:
    """Return how many parts of a path begin with a dot."""
    return sum(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _matching(folder: str, parts: list[str]) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders(folder):
            yield from _matching(below, rest)
        return
    if is_glob(part):
        name = re.compile(translate(part.replace("[^", "[!")))
        entries = (entry for entry in _entries(folder) if name.match(entry.name))
        found = [entry.path for entry in entries if part.startswith(".") or not entry.name.startswith(".")]
    else:
        path = os.path.join(folder, part)  # noqa: PTH118 (a Path drops the dot of `./`, and costs a tenth of a listing)
        found = [path] if os.path.lexists(path) else []
    for path in found:
        if not rest:
            yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from _matching(path, rest)


def _folders(folder: str) -> Iterator[str]:
    """Yield a folder and all below it that are not hidden, each once, those without a link on the way first."""
    plain, links = deque([(folder, os.path.realpath(folder))]), deque[str]()
    seen: set[str] = set()
    while plain or links:
        path, real = plain.popleft() if plain else ((link := links.popleft()), os.path.realpath(link))
        if real in seen:
            continue
        seen.add(real)
        yield path
        for entry in _entries(path):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                plain.append((entry.path, os.path.join(real, entry.name)))  # noqa: PTH118
            elif os.path.isdir(entry.path):  # noqa: PTH112 (of links in a circle, the entry's own raises)
                links.append(entry.path)


def _entries(folder: str) -> list["os.DirEntry[str]"]:
    """Return what a folder holds, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"this folder cannot be listed: {error.strerror}", file=folder) from error
