"""Which checkpoints stay in a run's folder, and what is noted beside them."""

import os

from .checkpoint import MANIFEST, WENT_BACK, step_folders
from .storage import Folder
from .tables import Checkpoint


def remember_going_back(folder: Folder, config: Checkpoint) -> None:
    """Where a launcher may restart a run by itself, note that this life of it has heeded `checkpoint.load_step`."""
    folder.delete(WENT_BACK)
    if config.load_step >= 0 and {"TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID"} & os.environ.keys():
        folder.write_atomically(WENT_BACK, str(config.load_step))


def prune(folder: Folder, latest: int, every: int) -> None:
    """Right after a save, remove what torn ones left and complete checkpoints that are not to be kept.

    Args:
        folder: of the step folders.
        latest: so many of the newest are kept; 0: all.
        every: and all whose step is a multiple of this; 0: none for that.

    The manifest goes first, so that a checkpoint is never half there.
    """
    folders = step_folders(folder)
    whole = [(step, path) for step, path in folders if path.size(MANIFEST) is not None]
    kept = {path for _, path in (whole[-latest:] if latest else whole)}
    kept |= {path for step, path in whole if every and step % every == 0}
    for _, path in folders:
        if path not in kept:
            path.delete(MANIFEST)
            path.remove()


def set_aside_after(folder: Folder, step: int) -> list[Folder]:
    """Rename checkpoints of later steps, which a run that goes back to `step` leaves behind: none must be resumed from.

    One without a manifest cannot be, and is overwritten when its step comes round again.
    """
    later = [path for number, path in step_folders(folder) if number > step and path.size(MANIFEST) is not None]
    return [folder.set_aside(path.name) for path in later]
