"""Where a run's weights come from: a checkpoint to resume or to start from, a Hugging Face folder, or nowhere."""

import time
from dataclasses import dataclass
from functools import partial

import tomli_w

from ...models.config import HEAD_KEYS, SCALING_OPTIONS, DecoderConfig, check_training
from ...models.errors import ModelError
from ...models.positions import rope_table
from ..build import dotted_keys, fine_tuning_differences
from ..checkpoints import Folder, Found, difference_table, find, on_rank_zero, verified
from ..config import JobConfig
from ..errors import CheckpointError
from ..huggingface import is_hugging_face, open_for_job
from ..processes import World

# options that mean nothing without another: a TOML that chooses that one chooses them
BELONGS_TO = {
    **{f"rope.{key}": ("scaling",) for key in ("factor", *SCALING_OPTIONS)},
    "attention.window": ("mask",),
    "attention.sinks": ("mask", "position_map"),
    **{f"attention.{key}": ("position_map",) for key in ("map_window", "leak", "group")},
}
FROM_WEIGHTS = "to go on from its weights alone, name it in checkpoint.initial_load_path of a new job.dump_folder"


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins.

    Attributes:
        found: the checkpoint or Hugging Face folder that the weights come from; None: fresh ones.
        resuming: whether the run continues there; else it takes the weights alone.
        messages: what people should know of it.
    """

    found: Found | None
    resuming: bool
    messages: list[str]

    @property
    def resumed(self) -> Found | None:
        """The checkpoint to resume from; None where the run begins at its first step."""
        return self.found if self.resuming else None


def starting_point(config: JobConfig, run: Folder, folder: Folder, decoder: DecoderConfig, world: World) -> StartingPoint:
    """Find where the weights come from, and whether the run continues there; every rank must call it.

    Args:
        config: which checkpoint is named, and the optimizer and `[fine_tuning]` that it must fit.
        run: this run's folder.
        folder: of this run's step folders.
        decoder: the model's shape, which must be that of the weights.
        world: this process among the others.

    Raises:
        CheckpointError: it is missing, torn, damaged or of another model.
        ModelError: a scaling that the weights do not know is of no use for this job's rows.
        ConfigError, ModelError, EosMismatchError: a Hugging Face folder is not what `cistron import` would take.
    """
    started, c = time.perf_counter(), config.checkpoint
    found, messages = find(c, run, folder, world) if c.enable else (None, [])
    resuming = found is not None or not c.initial_load_model_only
    if found is None and c.initial_load_path:
        path = Folder(c.initial_load_path)
        if on_rank_zero(world, path, partial(is_hugging_face, path)):
            found, read = world.on_every_rank(lambda: open_for_job(path, config.tokenizer))
            messages = [*messages, read]
        else:
            found = verified(path, world)
    if found is None:
        return StartingPoint(None, False, messages)
    check_shape(found, decoder, config, resuming)
    if resuming:
        check_angles(found, config.training.seq_len)
        if found.state.guard is None:
            raise CheckpointError(f"{found.path}: holds weights alone: checkpoint.initial_load_model_only must be true")
        saved, ours = found.state.config.optimizer.name, config.optimizer.name
        if saved != ours:  # its state would be of no use
            raise CheckpointError(f"{found.path}: optimizer.name: checkpoint {saved!r}, this job {ours!r}; {FROM_WEIGHTS}")
    else:
        check_scaling(found, decoder, config.training.seq_len)
        messages = [*messages, *check_trained_length(found, decoder)]
    check_fine_tuning(found, config, resuming)
    what = "resumed from" if resuming else "weights from"
    size, seconds = sum(size for size, _ in found.files.values()) / 1e9, time.perf_counter() - started
    how = f"{size:.3g} GB, checksums verified in {seconds:.1f} s" if found.files else "a Hugging Face folder"
    return StartingPoint(found, resuming, [*messages, f"{what} {found.path}, {how}"])


def check_shape(found: Found, decoder: DecoderConfig, config: JobConfig, resuming: bool) -> None:
    """Raise CheckpointError with a table of every key of the model shape in which the checkpoint and this job differ.

    A run may begin with a head that the checkpoint's model has not; its output projection is left out then. It may also
    begin with other rotary angles, windows or position maps, for which the weights are the same, where the TOML itself
    says so.
    """
    saved, ours = dotted_keys(found.state.model.model_dump()), dotted_keys(decoder.model_dump())
    if not resuming and not saved["head_outputs"]:
        saved |= {key: ours[key] for key in HEAD_KEYS}
    keys = [key for key in sorted(saved.keys() | ours.keys()) if saved.get(key) != ours.get(key)]
    if not resuming:
        keys = [key for key in keys if not is_chosen(config, key)]
    if keys:
        rows = [(key, repr(saved.get(key)), repr(ours.get(key))) for key in keys]
        fits = {"model": found.state.model.table()}
        advice = f"\n\nthe table that fits is\n\n{tomli_w.dumps(fits)}" if not found.files else ""
        if resuming and all(is_chosen(config, key) for key in keys):
            advice = f"\n  {FROM_WEIGHTS} with checkpoint.initial_load_model_only = true: weights alone may begin with these"
        raise CheckpointError(difference_table(found, "is of another model", rows) + advice)


def check_angles(found: Found, seq_len: int) -> None:
    """Raise CheckpointError where a run would continue with other rotary angles: some scalings follow the rows."""
    saved, decoder = found.seq_len or seq_len, found.state.model
    (then, factor_then), (now, factor_now) = (rope_table(decoder.rope, decoder.head_dim, rows) for rows in (saved, seq_len))
    if then.equal(now) and factor_then == factor_now:
        return
    what = f'has other angles: those of model.rope.scaling "{decoder.rope.scaling}" follow the length of rows'
    table = difference_table(found, what, [("training.seq_len", repr(saved), repr(seq_len))])
    raise CheckpointError(f"{table}\n  set training.seq_len = {saved}; {FROM_WEIGHTS}")


def check_scaling(found: Found, decoder: DecoderConfig, seq_len: int) -> None:
    """Raise ModelError where a scaling that the weights do not know begins on rows for which it is of no use."""
    learned = decoder.rope == found.state.model.rope
    if complaints := check_training(decoder.rope, decoder.attention, seq_len, learned=learned):
        raise ModelError("; ".join(complaints))


def is_chosen(config: JobConfig, key: str) -> bool:
    """Return whether the TOML chooses a value of `[model.rope]` or `[model.attention]`, or what it belongs to."""
    table, _, name = key.partition(".")
    if table not in ("rope", "attention"):
        return False
    chosen = getattr(config.model, table).model_fields_set
    return any(option in chosen for option in (name, *BELONGS_TO.get(key, ())))


def check_trained_length(found: Found, decoder: DecoderConfig) -> list[str]:
    """Warn where a job that begins from a checkpoint takes its rows for shorter or longer than they were.

    Raises:
        CheckpointError: the checkpoint states another `original_seq_len`.
    """
    ours, saved = decoder.rope.original_seq_len, found.state.model.rope.original_seq_len
    rows = found.seq_len
    if saved is not None and ours != saved:
        what = "was first trained on rows of another length"
        raise CheckpointError(difference_table(found, what, [("model.rope.original_seq_len", repr(saved), repr(ours))]))
    if saved is None and ours is not None and rows is not None and rows != ours:
        key = "training.seq_len" if found.files else "max_position_embeddings"  # of a Hugging Face folder there are no files
        return [
            f"warning: model.rope.original_seq_len is {ours}; {found.path} states none, and its own rows had {rows} tokens "
            f"({key}): right only if its weights come from longer or shorter ones before"
        ]
    return []


def check_fine_tuning(found: Found, config: JobConfig, resuming: bool) -> None:
    """Raise CheckpointError with a table where a run cannot go on, or begin, with this `[fine_tuning]`.

    A run goes on with what it began with: the optimizer's state is that of the parameters it trained. A new one may
    begin from adapters if it has the same; without them, the weights beside them are not those of the model that was
    trained.
    """
    saved = found.state.config.fine_tuning
    rows = fine_tuning_differences(saved, config.fine_tuning)
    if resuming and rows:
        raise CheckpointError(f"{difference_table(found, 'was trained with another [fine_tuning]', rows)}\n  {FROM_WEIGHTS}")
    rows = [row for row in rows if row[0].startswith("fine_tuning.lora.")]
    if rows and saved.lora.rank:
        advice = "cistron export merges its adapters into weights, and checkpoint.initial_load_path takes the folder it writes"
        raise CheckpointError(f"{difference_table(found, 'has other adapters', rows)}\n  {advice}")
