"""Save checkpoints asynchronously: copy, write in a thread, commit in a thread.

The ranks talk to each other in the main thread alone. Whether all have come to the end of a stage travels with the sums
that each step and each batch of a validation begin with, so that no collective runs concurrently with training's own
and none waits for a disk.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ...base import UserError
from ...datasets.loading import Inventory
from ..config import Checkpoint
from ..errors import CheckpointError, NonFiniteError
from ..processes import ThreadTask, World
from .dcp import HostBuffer, RankFile
from .find import NEWEST, WENT_BACK
from .folder import Folder
from .format import commit as checkpoint_commit
from .format import step_folders
from .load import tensors_of
from .manifest import INDEX, INVENTORY, MANIFEST, STATE
from .state import RunState

WAIT_MESSAGE_SECONDS = 60.0
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(kw_only=True)
class Saving:
    """A checkpoint on its way to the disk.

    Attributes:
        path: its folder.
        state: of the run, written by rank 0.
        inventory: the files that `state.data` is about, written by rank 0 to a file of its own: of a large corpus it is
            long.
        note: what is to be said with the message.
        task: this rank's part of the present stage: its tensors, and then, on rank 0, everything else.
        began: when, by `time.perf_counter`.
        stall: seconds for which training stood still for it.
        size: bytes of tensors; known when all are written.
        again: whether it is written a second time, after a full disk was given space.
    """

    path: Folder
    state: RunState
    inventory: Inventory
    note: str
    task: ThreadTask[Any]
    began: float
    stall: float
    size: int = 0
    again: bool = False


class Saver:
    """Writes checkpoints, one at a time; every rank calls every method at the same point of the run.

    Args:
        config: what to keep and whether training waits.
        run: the run's folder, which notes the newest checkpoint: one whose folder is gone is not taken for a fresh
            start.
        folder: of the step folders.
        world: whose ranks save.
        say: prints a message, on rank 0.
        step: of the newest checkpoint, saved or on its way; 0: none.
    """

    def __init__(
        self, config: Checkpoint, run: Folder, folder: Folder, world: World, say: Callable[[str], None], step: int
    ) -> None:
        self.config, self.run, self.folder, self.world, self.say, self.step = config, run, folder, world, say, step
        self.waits = config.async_mode == "disabled"
        self.file = RankFile(world.rank, None if self.waits else HostBuffer(world.device))
        self.running: Saving | None = None
        self.limit = config.max_failures
        self.failures = 0  # in a row

    def __enter__(self) -> None:
        """Let the end of the block finish what is being saved."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Training ends.

        A checkpoint under way is finished only after errors that all ranks raise together: after others, some are gone.
        """
        if kind is None or issubclass(kind, (UserError, NonFiniteError)):
            self.finish()

    @property
    def ready(self) -> bool:
        """Whether this rank has come to the end of a stage. Once all have, all call `advance`."""
        return self.running is not None and self.running.task.done()

    def begin(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, inventory: Inventory, note: str
    ) -> None:
        """Begin to save; with `async_mode = "disabled"` also end. What training changes from now on is not saved.

        Args:
            step: of the checkpoint.
            model: in any layout, the same at every save.
            optimizer: its optimizer.
            state: see `Saving`.
            inventory: likewise.
            note: likewise.

        Raises:
            CheckpointError: this was one failure too many.
        """
        self.finish()  # one copy of the model in host memory, no second
        began = time.perf_counter()
        path = self.folder / f"step-{step}"
        error = self.make_folder(path)
        if error and self.make_space([error]):
            error = self.make_folder(path)
        if errors := [f"rank 0: {error}"] if error else self.stage(model, optimizer):
            self.fail(path, errors)
            return
        self.step = step
        task = ThreadTask(lambda: self.file.write(path))
        stall = time.perf_counter() - began
        self.running = Saving(path=path, state=state, inventory=inventory, note=note, task=task, began=began, stall=stall)
        if self.waits:
            self.finish()

    def stage(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
        """Take hold of the tensors; returns what went wrong, by rank, the same on all."""
        error = None
        tensors = tensors_of(model, optimizer)
        if not self.file.planned:
            self.file.plan(tensors)
        try:
            self.file.stage(tensors)
        except RuntimeError as e:  # no memory for the copy
            error = e
        return [f"rank {rank}: {e!r}" for rank, e in enumerate(self.world.gather(error)) if e]

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is. Raises CheckpointError as `advance` does."""
        waited = 0.0
        while saving := self.running:
            started = said = time.perf_counter()

            def ready(path: Folder = saving.path, began: float = saving.began) -> bool:
                nonlocal said
                if (now := time.perf_counter()) - said > WAIT_MESSAGE_SECONDS:
                    said = now
                    self.say(f"still writing {path}, for {now - began:.0f} s now; training waits")
                return self.ready

            self.world.wait_for(ready)
            waited += time.perf_counter() - started
            saving.stall += time.perf_counter() - started
            self.advance()
        if waited > 1.0 and not self.waits and self.limit > 1:
            self.say(f"  {waited:.1f} s of that waiting for the disk: a save takes longer than checkpoint.interval steps")

    def advance(self) -> None:
        """Begin the next stage, as all ranks have ended this one, or say that the checkpoint is saved.

        Raises:
            CheckpointError: it failed, and so did `checkpoint.max_failures` in a row with it.
        """
        saving, started = self.running, time.perf_counter()
        assert saving
        parts = self.world.gather(saving.task.outcome())
        errors = {rank: part for rank, part in enumerate(parts) if isinstance(part, Exception)}
        if errors and not saving.again and self.make_space(errors.values()) and not self.make_folder(saving.path):
            saving.again, saving.size = True, 0
            saving.task = ThreadTask(lambda: self.file.write(saving.path))
        elif errors:
            self.running = None
            self.fail(saving.path, [f"rank {rank}: {error}" for rank, error in errors.items()])
        elif not saving.size:
            files = {name: entry for part in cast("list[dict[str, Any]]", parts) for name, entry in part.items()}
            saving.size = sum(size for size, _ in files.values())
            saving.task = ThreadTask(lambda: self.commit(saving, files) if self.world.is_first else "")
            saving.stall += time.perf_counter() - started
        else:
            self.running = None
            self.failures = 0
            size, seconds = saving.size / 1e9, time.perf_counter() - saving.began
            still = f"training stood still for {saving.stall:.2f} s"
            self.say(f"saved {saving.path}, {size:.3g} GB in {seconds:.1f} s; {still}{saving.note}")
            if parts[0]:
                self.say(f"warning: {self.folder}: saved, but removing old ones or noting it failed: {parts[0]}")

    def fail_hard(self) -> None:
        """From now on no save may fail: training is over, and there will be no other to make up for it."""
        self.limit = 1

    def make_folder(self, path: Folder) -> Exception | None:
        """Make the empty folder of a new checkpoint, and return what went wrong, the same on all ranks."""
        try:
            self.world.in_thread_on_rank_zero(lambda: self.make_empty(path))
        except (OSError, CheckpointError) as error:
            return error
        return None

    def make_space(self, errors: Iterable[Exception]) -> bool:
        """Remove checkpoints that are not to be kept where a disk is full, and return whether there were any.

        Those are more than `checkpoint.keep_latest_k` where that was lowered. The newest complete one always stays.
        """
        if not any(isinstance(error, OSError) and error.errno in FULL for error in errors):
            return False
        try:
            latest, every = self.config.keep_latest_k, self.config.keep_every_n
            removed = self.world.in_thread_on_rank_zero(lambda: prune(self.folder, latest, every))
        except (OSError, CheckpointError):
            return False
        if removed:
            self.say(f"{self.folder}: the disk is full: removed {', '.join(removed)}, beyond keep_latest_k = {latest}")
        return bool(removed)

    def make_empty(self, path: Folder) -> None:
        """Make the empty folder of a new checkpoint; what a torn save left there is removed."""
        if self.folder.is_local and not self.folder.exists():
            raise FileNotFoundError(f"{self.folder}: the folder of the checkpoints is gone; is its disk still mounted?")
        path.remove()
        path.make()

    def commit(self, saving: Saving, files: dict[str, tuple[int, str]]) -> str:
        """Write the rest of a checkpoint, the manifest last.

        Then remove those that are not to be kept, or return what forbids it.
        """
        texts = {INDEX: self.file.index, STATE: saving.state.text(), INVENTORY: json.dumps(saving.inventory)}
        checkpoint_commit(saving.path, files, texts)
        try:
            self.run.write_atomically(NEWEST, str(saving.path))
            prune(self.folder, self.config.keep_latest_k, self.config.keep_every_n)
        except Exception as e:  # whatever a store says: the checkpoint counts
            return f"{type(e).__name__}: {e}"
        return ""

    def fail(self, path: Folder, errors: list[str]) -> None:
        """Say why a checkpoint could not be written, and free what it took of the disk. Raises CheckpointError."""
        try:
            self.world.in_thread_on_rank_zero(path.remove)
        except (OSError, CheckpointError) as e:
            errors.append(f"rank 0, removing what was written: {e}")
        self.step = 0
        self.failures += 1
        message = "\n  ".join([f"{path}: not saved:", *errors, "earlier checkpoints are untouched"])
        if self.failures >= self.limit:
            of = "the last save of the run" if self.limit == 1 else f"checkpoint.max_failures = {self.limit} in a row"
            raise CheckpointError(f"{message}; this was {of}")
        self.say(f"warning: {message}")


def prepare_folders(config: Checkpoint, run: Folder, folder: Folder, step: int) -> list[Folder]:
    """Make the folder of a run and that of its checkpoints fit a run that goes on after `step`.

    Later checkpoints are renamed: none must be resumed from. One without a manifest cannot be, and is overwritten when
    its step comes round again. Where a launcher may restart the run by itself, `folder` notes that
    `checkpoint.load_step` was heeded.

    Args:
        config: `load_step` of it, which the job names.
        run: the run's folder.
        folder: of the step folders.
        step: the last whose checkpoint and records are this run's own; 0: none.

    Returns:
        The new names of the checkpoints that were renamed.
    """
    later = [path for number, path in step_folders(folder) if number > step and path.size(MANIFEST) is not None]
    aside = [folder.set_aside(path.name) for path in later]
    folder.delete(WENT_BACK)
    if config.load_step >= 0 and {"TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"} & os.environ.keys():
        folder.write_atomically(WENT_BACK, str(config.load_step))
    if not step:
        run.delete(NEWEST)
    return aside


def prune(folder: Folder, latest: int, every: int) -> list[str]:
    """Right after a save, remove what torn ones left and complete checkpoints that are not to be kept.

    Args:
        folder: of the step folders.
        latest: so many of the newest are kept; 0: all.
        every: and all whose step is a multiple of this; 0: none for that.

    The manifest goes first, so that a checkpoint is never half there.

    Returns:
        The names of the complete ones that were removed.
    """
    folders = step_folders(folder)
    whole = [(step, path) for step, path in folders if path.size(MANIFEST) is not None]
    kept = {path for _, path in (whole[-latest:] if latest else whole)}
    kept |= {path for step, path in whole if every and step % every == 0}
    for _, path in folders:
        if path not in kept:
            path.delete(MANIFEST)
            path.remove()
    return [path.name for _, path in whole if path not in kept]
