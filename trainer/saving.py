"""Saving checkpoints beside training: plan and copy together, write in a thread, commit together at a later step.

The ranks talk to each other in the main thread alone. Whether all have written travels with the sums that each step begins
with, so that no collective runs beside training's own and none waits for a disk.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from . import checkpoint
from .checkpoint import INVENTORY, STATE, tensors_of
from .distributed import Task, World
from .failures import USER_ERRORS, NonFiniteError
from .storage import CheckpointError, Folder
from .tables import Checkpoint
from .tensor_files import INDEX, RankFile, Staging

WAIT_MESSAGE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A checkpoint on its way to the disk."""

    step: int
    path: Folder
    file: RankFile
    task: Task[dict[str, tuple[int, str]]]
    state: dict[str, Any]
    inventory: Any
    note: str
    started: float
    stall: float


class Saver:
    """Writes checkpoints, one at a time; every rank calls every method at the same point of the run.

    Args:
        config: what to keep and whether training waits.
        folder: of the step folders.
        world: whose ranks save.
        say: prints a message, on rank 0.
        step: of the newest checkpoint, saved or on its way; 0: none.
    """

    def __init__(self, config: Checkpoint, folder: Folder, world: World, say: Callable[[str], None], step: int) -> None:
        self.config, self.folder, self.world, self.say, self.step = config, folder, world, say, step
        self.staging = Staging(world.device) if config.async_mode == "async" else None
        self.running: Saving | None = None
        self.limit = config.max_failures
        self.failures = 0  # in a row

    def __enter__(self) -> None:
        """Training begins."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Training ends. A checkpoint under way is still good, if all ranks have come here: in no other error have they."""
        if kind is None or issubclass(kind, (*USER_ERRORS, NonFiniteError)):
            self.finish()

    @property
    def written(self) -> bool:
        """Whether this rank has written its part of a checkpoint that is not committed yet."""
        return self.running is not None and self.running.task.done()

    def begin(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], inventory: Any, note: str
    ) -> None:
        """Begin to save; with `async_mode = "disabled"` also end. What training changes from now on is not saved.

        Args:
            step: of the checkpoint.
            model: in any layout.
            optimizer: its optimizer.
            state: JSON-able, written by rank 0.
            inventory: likewise; a file of its own, since a corpus of many files would make `state` slow to read.
            note: what is to be said with the message.

        Raises:
            CheckpointError: this was one failure too many.
        """
        self.finish()  # one copy of the model in host memory, no second
        started = time.perf_counter()
        path = self.folder / f"step-{step}"
        file = RankFile(path, self.world.rank, self.staging)
        try:
            self.world.beside(lambda: self.make_room(path) if self.world.is_first else None)
        except (OSError, CheckpointError) as e:
            self.fail(path, [f"rank 0: {e}"])
            return
        self.step = step
        tensors, planner = tensors_of(model, optimizer), DefaultSavePlanner(flatten_state_dict=False)
        try:
            dcp_save(tensors, storage_writer=file, planner=planner)
        except CheckpointException as e:  # no memory for the copy
            self.fail(path, [f"rank {rank}: {error!r}" for rank, (error, _) in e.failures.items()])
            return
        self.running = Saving(
            step=step,
            path=path,
            file=file,
            task=Task(file.write),
            state=state,
            inventory=inventory,
            note=note,
            started=started,
            stall=time.perf_counter() - started,
        )
        if self.staging is None:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and commit it. Raises CheckpointError as `commit` does."""
        if self.running is None:
            return
        started = said = time.perf_counter()

        def written() -> bool:
            nonlocal said
            if (now := time.perf_counter()) - said > WAIT_MESSAGE_SECONDS:
                said = now
                self.say(f"still writing {path}, for {now - begun:.0f} s now; training waits")
            return self.written

        path, begun = self.running.path, self.running.started
        self.world.wait_for(written)
        self.commit(waited=time.perf_counter() - started)

    def commit(self, waited: float = 0.0) -> None:
        """Make what all ranks have written a checkpoint, and remove those that are no longer to be kept.

        Args:
            waited: seconds for which training stood still for it.

        Raises:
            CheckpointError: it failed, and so did `checkpoint.max_failures` in a row with it.
        """
        saving, self.running = self.running, None
        assert saving
        parts = self.world.gather(saving.task.outcome())
        errors = [f"rank {rank}: {part}" for rank, part in enumerate(parts) if isinstance(part, Exception)]
        files = {name: entry for part in parts if not isinstance(part, Exception) for name, entry in part.items()}
        if not errors:
            try:
                self.world.beside(lambda: self.write_texts(saving, files) if self.world.is_first else None)
            except (OSError, CheckpointError) as e:
                errors = [f"rank 0: {e}"]
        if errors:
            self.fail(saving.path, errors)
            return
        self.failures = 0
        size = sum(bytes for bytes, _ in files.values()) / 1e9
        seconds, stall = time.perf_counter() - saving.started, saving.stall + waited
        self.say(f"saved {saving.path}, {size:.3g} GB in {seconds:.1f} s; training stood still for {stall:.2f} s{saving.note}")
        if waited > 1.0 and self.staging:
            self.say(f"  {waited:.1f} s of that waiting for the disk: a save takes longer than checkpoint.interval steps")
        if self.world.is_first:
            try:
                checkpoint.prune(self.folder, self.config.keep_latest_k, self.config.keep_every_n)
            except OSError as e:
                self.say(f"warning: {self.folder}: an old checkpoint could not be removed: {e}")

    def insist(self) -> None:
        """From now on no save may fail: training is over, and there will be no other to make up for it."""
        self.limit = 1

    def make_room(self, path: Folder) -> None:
        """The empty folder of a new checkpoint. What a torn save left there goes."""
        if self.folder.is_local and not self.folder.exists():
            raise FileNotFoundError(f"{self.folder}: the folder of the checkpoints is gone; is its disk still mounted?")
        path.remove()
        path.make()

    def write_texts(self, saving: Saving, files: dict[str, tuple[int, str]]) -> None:
        """The rest of a checkpoint, the manifest last."""
        texts = {INDEX: saving.file.index, STATE: json.dumps(saving.state, indent=1), INVENTORY: json.dumps(saving.inventory)}
        checkpoint.commit(saving.path, files, texts)

    def fail(self, path: Folder, errors: list[str]) -> None:
        """Say why a checkpoint could not be written, and free what it took of the disk. Raises CheckpointError."""
        if self.world.is_first:
            try:
                path.remove()
            except OSError as e:
                errors.append(f"rank 0, removing what was written: {e}")
        self.step = 0
        self.failures += 1
        message = "\n  ".join([f"{path}: not saved:", *errors])
        if self.failures >= self.limit:
            raise CheckpointError(f"{message}\n  {self.failures} failure(s) in a row; the last good checkpoint is untouched")
        self.say(f"warning: {message}\n  training goes on, the next checkpoint will be tried as usual")
