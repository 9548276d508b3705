"""Checkpoints: torch.distributed.checkpoint for tensors, JSON for the rest, and a manifest that makes them count.

    <dump_folder>/<checkpoint.folder>/step-<N>/
        __<rank>_0.distcp, .metadata   model and optimizer, written by DCP, loadable in any layout
        state.json                     step, tokens seen, data state, contract, model shape, resolved config, versions
        inventory.json                 the files that the data state is about: path, size, stamp
        manifest.json                  name and size of every file above

The manifest is written last and moved into place atomically: a folder without one, or whose files differ from it, was torn by
a crash and is passed over, saying so. Nothing here draws from a global random generator and the learning rate is a function
of the step, so there is no more state than this.
"""

import itertools
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from .tables import Checkpoint

MANIFEST, STATE, INVENTORY = "manifest.json", "state.json", "inventory.json"
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # keyed by parameter name, so that it can be resharded


class CheckpointError(ValueError):
    """A checkpoint that was asked for is missing, torn, or of another model."""


@dataclass(frozen=True)
class Found:
    """A complete checkpoint on disk."""

    path: Path
    state: dict[str, Any]

    def inventory(self) -> Any:
        """The files that its data state is about, as the loader listed them."""
        return json.loads((self.path / INVENTORY).read_text())


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """The `step-<N>` folders, oldest first, complete or not."""
    matches = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in matches if match)


def what_is_torn(path: Path) -> str | None:
    """Why the checkpoint at `path` is not complete, or None when it is."""
    if not path.is_dir():
        return "no such folder"
    try:
        files: dict[str, int] = json.loads((path / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"no {MANIFEST}: it was interrupted while being written"
    except (ValueError, KeyError):
        return f"{MANIFEST} is not readable"
    for name, size in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (found := (path / name).stat().st_size) != size:
            return f"{name} has {found} bytes, {MANIFEST} says {size}"
    try:
        json.loads((path / STATE).read_text())["progress"]
    except (ValueError, KeyError):
        return f"{STATE} is not readable"
    return None


def read(path: Path) -> Found:
    """The complete checkpoint at `path`. Raises CheckpointError with the reason when it is not one."""
    if reason := what_is_torn(path):
        steps = ", ".join(p.name for _, p in step_folders(path))
        raise CheckpointError(f"{path}: not a complete checkpoint: {f'choose one of {steps}' if steps else reason}")
    return Found(path, json.loads((path / STATE).read_text()))


def find(config: Checkpoint, folder: Path) -> tuple[Found | None, list[str]]:
    """The checkpoint to resume from, if any, and a message for each newer one that had to be passed over.

    Raises:
        CheckpointError: when `checkpoint.load_step` names one that is missing or torn, or when checkpoints were completed
            but all are damaged now: starting afresh by itself would throw the run away.
    """
    if config.load_step == 0:
        return None, []
    if config.load_step > 0:
        return read(folder / f"step-{config.load_step}"), []
    skipped: list[str] = []
    for _, path in reversed(step_folders(folder)):
        if (reason := what_is_torn(path)) is None:
            return read(path), skipped
        skipped.append(f"passed over {path}: {reason}")
    if any((path / MANIFEST).exists() for _, path in step_folders(folder)):
        advice = "every checkpoint is damaged; restore one, or start afresh with checkpoint.load_step = 0"
        raise CheckpointError("\n  ".join([f"{folder}: {advice}", *skipped]))
    return None, skipped


def origin(config: Checkpoint, folder: Path, shape: dict[str, Any], optimizer: str) -> tuple[Found | None, bool, list[str]]:
    """Where the weights come from (None: fresh ones), whether that is this run itself, and what is to be said of it.

    Args:
        config: which checkpoint is asked for.
        folder: of this run's step folders.
        shape: the decoder's, which must be that of the weights.
        optimizer: its name, which must be that of the state to resume.

    Raises:
        CheckpointError: it is missing, torn, or of another model.
    """
    found, messages = find(config, folder) if config.enable else (None, [])
    source = found or (read(Path(config.initial_load_path)) if config.initial_load_path else None)
    if source:
        check_shape(source, shape)
        if found:
            check_optimizer(found, optimizer)
        messages.append(f"{'resumed from' if found else 'weights from'} {source.path}")
    return source, found is not None, messages


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], inventory: Any) -> None:
    """Write a checkpoint; every rank calls it. It counts only once its manifest is in place, on rank 0, at the end.

    Args:
        path: the step folder; what a torn save left there is removed first.
        model: in any layout.
        optimizer: its optimizer.
        state: JSON-able, written by rank 0.
        inventory: likewise; a file of its own, since a corpus of many files would make `state` slow to read.
    """
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    dist.barrier()
    tensors = {"model": get_model_state_dict(model), "optimizer": optimizer_state(model, optimizer)}
    dcp_save(tensors, checkpoint_id=path)
    if dist.get_rank() == 0:
        write_atomically(path / STATE, json.dumps(state, indent=1))
        write_atomically(path / INVENTORY, json.dumps(inventory))
        files = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
        write_atomically(path / MANIFEST, json.dumps({"format": 1, "files": files}, indent=1))
    dist.barrier()


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Fill the model, and the optimizer's state if one is given, in place, from the checkpoint at `path`.

    Any layout may have saved it, and any types: values are converted to those that are there.
    """
    tensors: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer:
        tensors["optimizer"] = optimizer_state(model, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, which is what is meant
        dcp_load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_model_state_dict(model, tensors["model"])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's own tensors, by parameter and kind. Its settings are the configuration's: a resume may change them."""
    flat = get_optimizer_state_dict(model, optimizer, options=FLAT)
    return {key: value for key, value in flat.items() if key.startswith("state.")}


def check_optimizer(found: Found, name: str) -> None:
    """Raise CheckpointError where the checkpoint's optimizer is not `name`: its state would be of no use."""
    saved = found.state["config"]["optimizer"]["name"]
    if saved != name:
        raise CheckpointError(
            f"{found.path}: optimizer.name: checkpoint {saved!r}, this job {name!r}; to go on from its weights alone, "
            "name it in checkpoint.initial_load_path of a new job.dump_folder"
        )


def check_shape(found: Found, shape: dict[str, Any]) -> None:
    """Raise CheckpointError listing every key of the model shape in which the checkpoint and this job differ."""
    saved: dict[str, Any] = found.state["model"]
    different = [
        f"{key}: checkpoint {saved.get(key)!r}, this job {shape.get(key)!r}"
        for key in sorted(saved.keys() | shape.keys())
        if saved.get(key) != shape.get(key)
    ]
    if different:
        raise CheckpointError("\n  ".join([f"{found.path}: the checkpoint is of another model:", *different]))


def prune(folder: Path, keep: int) -> None:
    """Right after a save, remove what torn ones left and all but the newest `keep` (0: keep all) complete checkpoints.

    The manifest goes first, so that a checkpoint is never half there.
    """
    folders = [path for _, path in step_folders(folder)]
    complete = [path for path in folders if (path / MANIFEST).exists()]
    kept = complete[-keep:] if keep else complete
    for path in folders:
        if path not in kept:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)


def set_aside_after(folder: Path, step: int) -> list[Path]:
    """Rename checkpoints of later steps, which a run that goes back to `step` leaves behind: none must be resumed from.

    One without a manifest cannot be, and is overwritten when its step comes round again.
    """
    return [set_aside(path) for later, path in step_folders(folder) if later > step and (path / MANIFEST).exists()]


def set_aside(path: Path) -> Path:
    """Rename to the first free of `<name>.aside`, `<name>.aside1`, ...; returns the new path."""
    names = (path.with_name(f"{path.name}.aside{n or ''}") for n in itertools.count())
    return path.rename(next(name for name in names if not name.exists()))


def write_atomically(path: Path, text: str) -> None:
    """Write, flush to disk, and move into place: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
