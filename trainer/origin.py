"""Where a run's weights come from: a checkpoint to resume or to start from, a Hugging Face folder, or nowhere."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import tomli_w

from ..models.config import HEAD_KEYS
from .checkpoint import Found, ask, differences, find, good
from .config import JobConfig
from .distributed import World
from .fine_tuning import differences as fine_tuning_differences
from .hf_start import is_hugging_face, open_hugging_face
from .storage import CheckpointError, Folder


def origin(
    config: JobConfig, run: Folder, folder: Folder, shape: dict[str, Any], world: World
) -> tuple[Found | None, bool, list[str]]:
    """Where the weights come from (None: fresh ones), whether a run goes on there, and what is to be said of it.

    Args:
        config: which checkpoint is asked for, and the optimizer and `[fine_tuning]` that it must fit.
        run: this run's folder.
        folder: of this run's step folders.
        shape: the decoder's, which must be that of the weights.
        world: whose ranks all ask.

    Raises:
        CheckpointError: it is missing, torn, damaged or of another model.
        ConfigError, ModelError, EosMismatchError: a Hugging Face folder is not what `cistron import` would take.
    """
    started, c = time.perf_counter(), config.checkpoint
    found, messages = find(c, run, folder, world) if c.enable else (None, [])
    resuming = found is not None or not c.initial_load_model_only
    if found is None and c.initial_load_path:
        path = Folder(c.initial_load_path)
        if ask(world, path, partial(is_hugging_face, path)):
            found = world.together(lambda: open_hugging_face(path, config.tokenizer))
        else:
            found = good(path, world)
    if found is None:
        return None, False, messages
    check_shape(found, shape, resuming)
    if resuming and "guard" not in found.state:
        raise CheckpointError(f"{found.path}: holds weights alone: checkpoint.initial_load_model_only must be true")
    if resuming:
        check_optimizer(found, config.optimizer.name)
    check_fine_tuning(found, config, resuming)
    what = "resumed from" if resuming else "weights from"
    size, seconds = sum(size for size, _ in found.files.values()) / 1e9, time.perf_counter() - started
    how = f"{size:.3g} GB, checksums verified in {seconds:.1f} s" if found.files else "a Hugging Face folder"
    return found, resuming, [*messages, f"{what} {found.path}, {how}"]


def check_optimizer(found: Found, name: str) -> None:
    """Raise CheckpointError where the checkpoint's optimizer is not `name`: its state would be of no use."""
    saved = found.state.get("config", {}).get("optimizer", {}).get("name")
    if saved != name:
        raise CheckpointError(
            f"{found.path}: optimizer.name: checkpoint {saved!r}, this job {name!r}; to go on from its weights alone, "
            "name it in checkpoint.initial_load_path of a new job.dump_folder"
        )


def check_shape(found: Found, shape: Mapping[str, Any], resuming: bool) -> None:
    """Raise CheckpointError with a table of every key of the model shape in which the checkpoint and this job differ.

    A run may begin with a head that the checkpoint's model has not; its output projection is left out then.
    """
    saved: dict[str, Any] = {"head_outputs": 0, "pool": "mean", **found.state["model"]}
    if not resuming and not saved["head_outputs"]:
        saved |= {key: shape[key] for key in HEAD_KEYS}
    keys = sorted(saved.keys() | shape.keys())
    if rows := [(key, repr(saved.get(key)), repr(shape.get(key))) for key in keys if saved.get(key) != shape.get(key)]:
        table = {key: value for key, value in saved.items() if key not in ("causal", *HEAD_KEYS)}
        fits = f"\n\nthe table that fits is\n\n{tomli_w.dumps({'model': table})}" if not found.files else ""
        raise CheckpointError(differences(found, "is of another model", rows) + fits)


def check_fine_tuning(found: Found, config: JobConfig, resuming: bool) -> None:
    """Raise CheckpointError with a table where a run cannot go on, or begin, with this `[fine_tuning]`.

    A run goes on with what it began with: the optimizer's state is that of the parameters it trained. A new one may begin from
    adapters if it has the same; without them, the weights beside them are not those of the model that was trained.
    """
    saved = found.state.get("config", {}).get("fine_tuning", {})
    rows = fine_tuning_differences(saved, config.fine_tuning)
    if resuming and rows:
        advice = "to go on from its weights alone, name it in checkpoint.initial_load_path of a new job.dump_folder"
        raise CheckpointError(f"{differences(found, 'was trained with another [fine_tuning]', rows)}\n  {advice}")
    rows = [row for row in rows if row[0].startswith("fine_tuning.lora.")]
    if rows and saved.get("lora", {}).get("rank"):
        advice = "cistron export merges its adapters into weights, and checkpoint.initial_load_path takes the folder it writes"
        raise CheckpointError(f"{differences(found, 'has other adapters', rows)}\n  {advice}")
