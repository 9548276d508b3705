"""Which checkpoint a run resumes from: the newest good one, or the step that the job names.

Every checksum is compared before a checkpoint is used, each rank reading its share of the files. One where a checksum
fails is passed over, and the reason is printed.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..config import Checkpoint
from ..errors import CheckpointError
from ..processes import World
from .folder import Folder
from .format import Found, complete_or_raise, damage, inspect, step_folders, undamaged_or_raise
from .manifest import MANIFEST

WENT_BACK = "load_step"  # beside the checkpoints
NEWEST = "newest_checkpoint"  # in the run's folder
T = TypeVar("T")


def on_rank_zero(world: World, folder: Folder, question: Callable[[], T]) -> T:
    """Return what rank 0 sees of a folder, on every rank, so that all do the same. Raises CheckpointError."""
    try:
        return world.in_thread_on_rank_zero(question)
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be read: {e}") from None


def newest(folder: Folder, below: float) -> tuple[Found | None, list[str]]:
    """Return the newest complete checkpoint below a step, and a message for each newer one that is not complete."""
    skipped: list[str] = []
    for step, path in reversed(step_folders(folder)):
        if step < below:
            found, reason = inspect(path)
            if found:
                return found, skipped
            skipped.append(f"passed over {path}: {reason}")
    return None, skipped


def find(config: Checkpoint, run: Folder, folder: Folder, world: World) -> tuple[Found | None, list[str]]:
    """Return the checkpoint to resume from, if any, and a message for each newer one that was passed over.

    Every rank must call it. Rank 0 looks in `folder`, so that all ranks return the same.

    Raises:
        CheckpointError: when `checkpoint.load_step` names one that is missing, torn or damaged, or when checkpoints
            were completed, as `run` notes, but all are damaged or gone now: starting afresh by itself would throw the
            run away.
    """
    skipped: list[str] = []
    if config.load_step >= 0:
        if not on_rank_zero(world, folder, lambda: has_gone_back(folder, config)):
            return (verified(folder / f"step-{config.load_step}", world) if config.load_step else None), []
        skipped = [f"checkpoint.load_step = {config.load_step} was heeded before this restart"]
    below = float("inf")
    while True:
        found, reasons = on_rank_zero(world, folder, partial(newest, folder, below))
        skipped += reasons
        if found is None:
            break
        if not (wrong := damage(found, world)):
            return found, skipped
        skipped += [f"passed over {found.path}: {reason}" for reason in wrong]
        below = int(found.path.name.removeprefix("step-"))
    if lost := on_rank_zero(world, folder, lambda: what_is_lost(run, folder)):
        raise CheckpointError("\n  ".join([f"{folder}: {lost}", *skipped]))
    return None, skipped


def what_is_lost(run: Folder, folder: Folder) -> str:
    """Return why a run that has no good checkpoint has had one, and what to do; empty where it has had none."""
    if any(path.size(MANIFEST) is not None for _, path in step_folders(folder)):
        return "every checkpoint is damaged; restore one, or start afresh with --checkpoint.load_step 0"
    if run.size(NEWEST) is None:
        return ""
    saved = run.read(NEWEST)[:500].decode(errors="replace")
    return f"no checkpoint, though the run has saved {saved}; is its disk mounted? --checkpoint.load_step 0 starts afresh"


def verified(path: Folder, world: World) -> Found:
    """Return the good checkpoint at `path`, on every rank.

    Raises CheckpointError where it is missing, torn or damaged.
    """
    found = on_rank_zero(world, path, partial(complete_or_raise, path))
    return undamaged_or_raise(found, damage(found, world))


def has_gone_back(folder: Folder, config: Checkpoint) -> bool:
    """Return whether a launcher restarted a run that has heeded `checkpoint.load_step`: twice would undo steps."""
    restarts = [os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")]
    return restarts != ["0", "0"] and WENT_BACK in folder.names() and folder.read(WENT_BACK) == str(config.load_step).encode()
