"""What a checkpoint is: the files of a step's folder, and the manifest whose presence makes them count.

    <dump_folder>/<checkpoint.folder>/step-<N>/
        rank-<R>.safetensors   pieces of model and optimizer that rank R wrote (tensors.py)
        tensors.json           where each piece is
        state.json             what the checkpoint states of its run (state.py)
        inventory.json         the files that the data state is about: path, size, stamp
        manifest.json          size and checksum of every file above, and of itself

The manifest is written last and moved into place atomically: a folder without one was torn by a crash. Nothing is
unpickled.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash
from pydantic import StrictStr, TypeAdapter, ValidationError
from torch import Tensor

from ...base import aligned, shown
from ...datasets.loading import Inventory
from ..errors import CheckpointError
from ..processes import World
from .dcp import CheckpointReader
from .folder import Folder
from .foreign import foreign
from .manifest import INDEX, INVENTORY, MANIFEST, STATE, listed_files, manifest_text
from .state import RunState
from .tensors import Count, Index, Spec, write_tensors

STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
FILES_OF_SOURCES = TypeAdapter(dict[str, list[tuple[StrictStr, Count, StrictStr]]])  # path, size, stamp


@dataclass(frozen=True)
class Found:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        state: what it states of its run.
        where: the file that states it, for messages.
        seq_len: tokens of the rows that it was trained on; None: unknown.
        fingerprint: what changes with any of its files.
        files: bytes and xxh3_128 of its files by name, as the manifest states them; none of a Hugging Face folder.
        index: where its tensors are; None: `tensors.json` says so.
    """

    path: Folder
    state: RunState
    where: str
    seq_len: int | None
    fingerprint: str
    files: dict[str, tuple[int, str]]
    index: Index | None = None

    def reader(self) -> CheckpointReader:
        """Return a reader of its tensors."""
        return CheckpointReader(self.path, self.index)

    def inventory(self) -> Inventory:
        """Return the files that its data state is about, as the loader listed them. Raises CheckpointError."""
        try:
            return FILES_OF_SOURCES.validate_python(self.path.read_json(INVENTORY))
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{self.path / INVENTORY}: {'.'.join(map(str, first['loc']))}"
            raise CheckpointError(f"{where} = {shown(first['input'])}: {first['msg']}") from None

    def damage(self, rank: int = 0, ranks: int = 1) -> list[str]:
        """Return what is wrong with its files, or with one rank's share of them: those that are not as written."""
        wrong = []
        for name in sorted(self.files)[rank::ranks]:
            try:
                digest = self.path.digest(name)
            except OSError as e:
                wrong.append(f"{name} cannot be read: {e}")
                continue
            if digest != self.files[name][1]:
                wrong.append(f"{name} is damaged: its xxh3_128 is {digest}, {MANIFEST} says {self.files[name][1]}")
        return wrong


def step_folders(folder: str | os.PathLike[str]) -> list[tuple[int, Folder]]:
    """Return the `step-<N>` folders, oldest first, complete or not."""
    folder = Folder(folder)
    matches = [(STEP.fullmatch(name), name) for name in folder.names()]
    return sorted(((int(match[1]), folder / name) for match, name in matches if match), key=lambda entry: entry[0])


def inspect(path: str | os.PathLike[str]) -> tuple[Found | None, str]:
    """Return the checkpoint at `path` if all its files are there, else why it is none.

    Checksums are not compared yet.
    """
    path = Folder(path)
    try:
        if not path.exists():
            return None, "no such folder"
        if path.size(MANIFEST) is None:
            return None, foreign(path) or f"no {MANIFEST}: it was interrupted while being written"
        text = path.read(MANIFEST)
        files = listed_files(text)
        for name, (size, _) in files.items():
            if (found := path.size(name)) is None:
                return None, f"{name} is missing"
            if found != size:
                return None, f"{name} has {found} bytes, {MANIFEST} says {size}"
        if path.digest(STATE) != files[STATE][1]:
            return None, f"{STATE} is damaged: it does not fit its checksum in {MANIFEST}"
        where = str(path / STATE)
        state = RunState.read(path.read(STATE), where)
        if (number := STEP.fullmatch(path.name)) and int(number[1]) != state.progress.step:
            return None, f"{STATE} is of step {state.progress.step}, the folder says {number[1]}; was it renamed?"
        return Found(path, state, where, state.config.training.seq_len, xxhash.xxh3_128_hexdigest(text), files), ""
    except CheckpointError as e:
        return None, str(e)
    except OSError as e:
        return None, f"cannot be read: {e}"


def complete_or_raise(path: Folder) -> Found:
    """Return the complete checkpoint at `path`, checksums aside.

    Raises CheckpointError with the reason when it is not one.
    """
    found, reason = inspect(path)
    if found is None:
        inside = ", ".join(p.name for _, p in step_folders(path))
        beside = ", ".join(p.name for _, p in step_folders(path.parent)) if not path.exists() else ""
        there = f"; beside it there are {beside}" if beside else ""
        raise CheckpointError(f"{path}: not a complete checkpoint: {f'choose one of {inside}' if inside else reason + there}")
    return found


def read(path: str | os.PathLike[str]) -> Found:
    """Return the good checkpoint at `path`. Raises CheckpointError where it is missing, torn or damaged."""
    found = complete_or_raise(Folder(path))
    return undamaged_or_raise(found, found.damage())


def undamaged_or_raise(found: Found, wrong: list[str]) -> Found:
    """Return the checkpoint. Raises CheckpointError where something is wrong with its files."""
    if wrong:
        raise CheckpointError("\n  ".join([f"{found.path}: the checkpoint is damaged:", *wrong]))
    return found


def read_newest(path: str | os.PathLike[str]) -> tuple[Found, list[str]]:
    """Return the good checkpoint at `path`, or the newest good one in it and a message for each newer bad one.

    Raises:
        CheckpointError: there is none.
    """
    skipped: list[str] = []
    for _, folder in reversed(step_folders(path)):
        try:
            return read(folder), skipped
        except CheckpointError as e:
            skipped.append(f"passed over {e}")
    if skipped:
        raise CheckpointError("\n  ".join([f"{path}: no good checkpoint:", *skipped]))
    return read(path), []


def damage(found: Found, world: World) -> list[str]:
    """Return what is wrong with the files of a checkpoint, on every rank; each reads its share of them."""
    shares = world.in_thread_on_every_rank(lambda: found.damage(world.rank, world.layout.world_size))
    return [line for share in shares for line in share]


def write_whole(path: Any, specs: Mapping[str, Spec], read: Callable[[str], Tensor], state: RunState) -> None:
    """Write a checkpoint of weights alone, one tensor at a time.

    Args:
        path: of the step folder; what is there goes.
        specs: type and shape of each parameter of the decoder, by name.
        read: returns a parameter.
        state: what it is to state.
    """
    folder = Folder(path)
    folder.remove()
    folder.make(parents=True)
    files, index = write_tensors(folder, specs, read)
    commit(folder, files, {INDEX: index, STATE: state.text(), INVENTORY: "{}"})


def commit(folder: Folder, files: dict[str, tuple[int, str]], texts: dict[str, str]) -> None:
    """Make a checkpoint of files that are written and of some texts; it counts once its manifest is there.

    Raises:
        OSError: a file is not there as it was written, or a text cannot be written.
    """
    for name, (size, _) in files.items():
        if (found := folder.size(name)) != size:
            raise OSError(f"{folder / name}: {found} bytes, {size} were written; is the folder on a disk that all nodes share?")
    for name, text in texts.items():
        files[name] = folder.write_atomically(name, text)
    folder.write_atomically(MANIFEST, manifest_text(files))


def difference_table(found: Found, what: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a message with a table of what differs."""
    lines = aligned([("", "checkpoint", "this job"), *rows])
    return "\n  ".join([f"{found.path}: the checkpoint {what}:", *lines])
