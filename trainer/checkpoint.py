"""Checkpoints on a disk or in an object store: what makes one count, finding a good one, and loading it.

    <dump_folder>/<checkpoint.folder>/step-<N>/
        rank-<R>.safetensors   pieces of model and optimizer that rank R wrote (tensor_files.py)
        tensors.json           where each piece is
        state.json             step, tokens seen, data state, contract, model shape, resolved config, versions
        inventory.json         the files that the data state is about: path, size, stamp
        manifest.json          size and checksum of every file above, and of itself

The manifest is written last and moved into place atomically (saving.py): a folder without one was torn by a crash. Every
checksum is compared before a checkpoint is used, each rank reading its share of the files; a checkpoint where one fails is
passed over, saying so. Nothing here is unpickled. Nothing draws from a global random generator and the learning rate is a
function of the step, so there is no more state than this.
"""

import itertools
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from .adamw import local
from .distributed import World
from .storage import CheckpointError, Folder
from .tables import Checkpoint
from .tensor_files import INDEX, Index, Spec, write_tensors
from .tensor_plans import CheckpointReader

MANIFEST, STATE, INVENTORY = "manifest.json", "state.json", "inventory.json"
WENT_BACK = "load_step"  # beside the checkpoints
NEWEST = "newest_checkpoint"  # in the run's folder
FORMAT = 2
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # keyed by parameter name, so that it can be resharded

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        state: what `state.json` holds.
        files: bytes and xxh3_128 of its files by name, as the manifest states them.
        index: where its tensors are; None: `tensors.json` says so.
    """

    path: Folder
    state: dict[str, Any]
    files: dict[str, tuple[int, str]]
    index: Index | None = None

    def reader(self) -> CheckpointReader:
        """A reader of its tensors."""
        return CheckpointReader(self.path, self.index)

    def inventory(self) -> Any:
        """The files that its data state is about, as the loader listed them."""
        return self.path.read_json(INVENTORY)

    def damage(self, share: Callable[[list[str]], Sequence[str]] = list) -> list[str]:
        """What is wrong with those of its files that `share` picks: none is as it was written."""
        wrong = []
        for name in share(sorted(self.files)):
            try:
                digest = self.path.digest(name)
            except OSError as e:
                wrong.append(f"{name} cannot be read: {e}")
                continue
            if digest != self.files[name][1]:
                wrong.append(f"{name} is damaged: its xxh3_128 is {digest}, {MANIFEST} says {self.files[name][1]}")
        return wrong


def step_folders(folder: str | os.PathLike[str]) -> list[tuple[int, Folder]]:
    """The `step-<N>` folders, oldest first, complete or not."""
    folder = Folder(folder)
    matches = [(re.fullmatch(r"step-(\d+)", name), name) for name in folder.names()]
    return sorted(((int(match[1]), folder / name) for match, name in matches if match), key=lambda entry: entry[0])


def manifest_text(files: Mapping[str, tuple[int, str]]) -> str:
    """The text of a manifest: it ends in its own checksum, so that a damaged one is not taken for damage elsewhere."""
    listing = {name: {"bytes": size, "xxh3_128": digest} for name, (size, digest) in sorted(files.items())}
    own = xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())
    return json.dumps({"format": FORMAT, "files": listing, "xxh3_128": own}, indent=1)


def look(path: str | os.PathLike[str]) -> tuple[Found | None, str]:
    """The checkpoint at `path` if all its files are there, else why it is none. Checksums are not compared yet."""
    path = Folder(path)
    try:
        if not path.exists():
            return None, "no such folder"
        if path.size(MANIFEST) is None:
            return None, f"no {MANIFEST}: it was interrupted while being written"
        text = path.read(MANIFEST)
        try:
            manifest = json.loads(text)
            if manifest["format"] != FORMAT:
                return None, f"of format {manifest['format']}; this version reads {FORMAT}"
            files = {name: (entry["bytes"], entry["xxh3_128"]) for name, entry in manifest["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, f"{MANIFEST} is not readable"
        if manifest_text(files).encode() != text:
            return None, f"{MANIFEST} is damaged: it does not fit the checksum in it"
        for name, (size, _) in files.items():
            if (found := path.size(name)) is None:
                return None, f"{name} is missing"
            if found != size:
                return None, f"{name} has {found} bytes, {MANIFEST} says {size}"
        if path.digest(STATE) != files[STATE][1]:
            return None, f"{STATE} is damaged: it does not fit its checksum in {MANIFEST}"
        state = path.read_json(STATE)
        if not isinstance(state, dict) or not state.keys() >= {"model", "contract"}:
            return None, f"{STATE} does not say what model and contract it is about"
        return Found(path, state, files), ""
    except (OSError, CheckpointError) as e:
        return None, f"cannot be read: {e}"


def what_is_torn(path: str | os.PathLike[str]) -> str | None:
    """Why the checkpoint at `path` is not complete, or None when it is."""
    found, reason = look(path)
    return None if found else reason


def complete(path: Folder) -> Found:
    """The complete checkpoint at `path`, checksums aside. Raises CheckpointError with the reason when it is not one."""
    found, reason = look(path)
    if found is None:
        inside = ", ".join(p.name for _, p in step_folders(path))
        beside = ", ".join(p.name for _, p in step_folders(path.parent)) if not path.exists() else ""
        there = f"; beside it there are {beside}" if beside else ""
        raise CheckpointError(f"{path}: not a complete checkpoint: {f'choose one of {inside}' if inside else reason + there}")
    return found


def read(path: str | os.PathLike[str]) -> Found:
    """The good checkpoint at `path`. Raises CheckpointError where it is missing, torn or damaged."""
    found = complete(Folder(path))
    return undamaged(found, found.damage())


def undamaged(found: Found, wrong: list[str]) -> Found:
    """The checkpoint itself. Raises CheckpointError where something is wrong with its files."""
    if wrong:
        raise CheckpointError("\n  ".join([f"{found.path}: the checkpoint is damaged:", *wrong]))
    return found


def read_newest(path: str | os.PathLike[str]) -> tuple[Found, list[str]]:
    """The good checkpoint at `path` or the newest good one in it, and a message for each newer one that is not good.

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
    """What is wrong with the files of a checkpoint, on every rank; each reads its share of them."""
    return list(
        itertools.chain(*world.beside(lambda: found.damage(lambda names: names[world.rank :: world.layout.world_size])))
    )


def ask(world: World, folder: Folder, question: Callable[[], T]) -> T:
    """What rank 0 sees of a folder, on every rank, so that all do the same. Raises CheckpointError where it cannot be read."""
    try:
        return world.beside(lambda: question() if world.is_first else cast(T, None))[0]
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be read: {e}") from None


def newest(folder: Folder, below: float) -> tuple[Found | None, list[str]]:
    """The newest complete checkpoint of a step below some, and a message for each newer one that is not complete."""
    skipped: list[str] = []
    for step, path in reversed(step_folders(folder)):
        if step < below:
            found, reason = look(path)
            if found:
                return found, skipped
            skipped.append(f"passed over {path}: {reason}")
    return None, skipped


def find(config: Checkpoint, run: Folder, folder: Folder, world: World) -> tuple[Found | None, list[str]]:
    """The checkpoint to resume from, if any, and a message for each newer one that had to be passed over; on every rank.

    Rank 0 looks for it in `folder`, so that all ranks do the same.

    Raises:
        CheckpointError: when `checkpoint.load_step` names one that is missing, torn or damaged, or when checkpoints were
            completed, as `run` notes, but all are damaged or gone now: starting afresh by itself would throw the run away.
    """
    skipped: list[str] = []
    if config.load_step >= 0:
        if not ask(world, folder, lambda: has_gone_back(folder, config)):
            return (good(folder / f"step-{config.load_step}", world) if config.load_step else None), []
        skipped = [f"checkpoint.load_step = {config.load_step} was heeded before this restart"]
    below = float("inf")
    while True:
        found, reasons = ask(world, folder, partial(newest, folder, below))
        skipped += reasons
        if found is None:
            break
        if not (wrong := damage(found, world)):
            return found, skipped
        skipped += [f"passed over {found.path}: {reason}" for reason in wrong]
        below = int(found.path.name.removeprefix("step-"))
    if ask(world, folder, lambda: any(path.size(MANIFEST) is not None for _, path in step_folders(folder))):
        advice = "every checkpoint is damaged; restore one, or start afresh with --checkpoint.load_step 0"
        raise CheckpointError("\n  ".join([f"{folder}: {advice}", *skipped]))
    if ask(world, run, lambda: run.size(NEWEST) is not None):
        newest_was = ask(world, run, lambda: run.read(NEWEST).decode())
        advice = (
            f"no checkpoint, though the run has saved {newest_was}; is its disk mounted? --checkpoint.load_step 0 starts afresh"
        )
        raise CheckpointError("\n  ".join([f"{folder}: {advice}", *skipped]))
    return None, skipped


def good(path: Folder, world: World) -> Found:
    """The good checkpoint at `path`, on every rank. Raises CheckpointError where it is missing, torn or damaged."""
    found = ask(world, path, partial(complete, path))
    return undamaged(found, damage(found, world))


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """This rank's tensors by the names that they have in a checkpoint.

    Of the optimizer only its own: its settings are the configuration's, and a resume may change them.
    """
    tensors: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in get_model_state_dict(model).items():
        memory = local(cast("Tensor", value)).data_ptr()
        if memory not in seen or not memory:  # tied parameters are one
            tensors[f"model.{name}"] = value
        seen.add(memory)
    if optimizer:
        state = get_optimizer_state_dict(model, optimizer, options=FLAT)
        tensors |= {f"optimizer.{name}": value for name, value in state.items() if name.startswith("state.")}
    return tensors


def load(
    found: Found,
    reader: CheckpointReader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    fresh: Collection[str] = (),
) -> None:
    """Fill the model, and the optimizer's state if one is given, in place.

    Any layout may have saved it, and any types: values are converted to those that are there.

    Args:
        found: the checkpoint.
        reader: of its tensors; all ranks must have one before any of them calls this.
        model: in any layout.
        optimizer: its optimizer.
        fresh: parameters that are left as they are.

    Raises:
        CheckpointError: it lacks a tensor, or one has another shape.
    """
    tensors = tensors_of(model, optimizer)
    for name in fresh:
        del tensors[f"model.{name}"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    saved = {name: shape for name, ((_, shape), _) in reader.index.items()}
    if lacking := {name: shape for name, shape in shapes.items() if saved.get(name) != shape}:
        rows = [(name, str(saved.get(name, "-")), str(shape)) for name, shape in lacking.items()]
        raise CheckpointError(differences(found, "has other tensors", rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, which is what is meant
        planner = DefaultLoadPlanner(flatten_state_dict=False)
        try:
            dcp_load(tensors, storage_reader=reader, planner=planner, no_dist=not dist.is_initialized())
        except CheckpointException as e:
            reasons = [f"rank {rank}: {error}" for rank, (error, _) in e.failures.items()]
            raise CheckpointError("\n  ".join([f"{found.path}: cannot be loaded:", *reasons])) from None


def write_whole(path: Any, specs: Mapping[str, Spec], read: Callable[[str], Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint of weights alone, one tensor at a time.

    Args:
        path: of the step folder; what is there goes.
        specs: type and shape of each parameter of the decoder, by name.
        read: returns a parameter.
        state: what `state.json` is to hold.
    """
    folder = Folder(path)
    folder.remove()
    folder.make(parents=True)
    files, index = write_tensors(folder, specs, read)
    commit(folder, files, {INDEX: index, STATE: json.dumps(state, indent=1), INVENTORY: "{}"})


def commit(folder: Folder, files: dict[str, tuple[int, str]], texts: dict[str, str]) -> None:
    """Make a checkpoint of files that are written, and of some texts: from the moment when its manifest is there, it counts.

    Raises:
        OSError: a file is not there as it was written, or a text cannot be written.
    """
    for name, (size, _) in files.items():
        if (found := folder.size(name)) != size:
            raise OSError(f"{folder / name}: {found} bytes, {size} were written; is the folder on a disk that all nodes share?")
    for name, text in texts.items():
        files[name] = folder.write_atomically(name, text)
    folder.write_atomically(MANIFEST, manifest_text(files))


def differences(found: Found, what: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """A message with a table of what differs."""
    rows = [("", "checkpoint", "this job"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n  ".join([f"{found.path}: the checkpoint {what}:", *lines])


def has_gone_back(folder: Folder, config: Checkpoint) -> bool:
    """Whether a launcher has restarted a run that has heeded `checkpoint.load_step`: again, it would undo what came since."""
    restarts = [os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    return restarts != ["0", "0"] and WENT_BACK in folder.names() and folder.read(WENT_BACK) == str(config.load_step).encode()
