"""The layout of a job: how its processes divide into parallel dimensions, and what those dimensions must divide."""

import os
from dataclasses import dataclass

from ...models.config import DecoderConfig
from ..config import JobConfig
from ..errors import ConfigError, refuse


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism; their product is the number of processes."""

    replicate: int
    shard: int
    cp: int
    tp: int

    def __str__(self) -> str:
        """Return the degrees and their product, as messages show them."""
        return f"replicate {self.replicate} x shard {self.shard} x context {self.cp} x tensor {self.tp} = {self.world_size}"

    @property
    def data_parallel(self) -> int:
        """Number of ranks with rows of their own."""
        return self.replicate * self.shard

    @property
    def world_size(self) -> int:
        """Number of processes in all."""
        return self.data_parallel * self.cp * self.tp

    @property
    def sequence(self) -> str:
        """The keys that split the sequence, as a complaint names them."""
        return f"parallelism.context_parallel_degree {self.cp} x parallelism.tensor_parallel_degree {self.tp}"

    @property
    def gradient_ranks(self) -> int:
        """Ranks whose tokens differ: FSDP2 averages gradients over so many."""
        return self.data_parallel * self.cp

    @classmethod
    def resolve(cls, config: JobConfig, world_size: int | None = None) -> "Layout":
        """Fit `[parallelism]` to `world_size` processes (None: to as many as the degrees name).

        Raises:
            ConfigError: with the arithmetic, when the degrees do not multiply to the world size.
        """
        refuse(degree_complaints(config, world_size))
        return cls._of(config, world_size)

    @classmethod
    def _of(cls, config: JobConfig, world_size: int | None) -> "Layout":
        p = config.parallelism
        replicate, cp, tp = p.data_parallel_replicate_degree, p.context_parallel_degree, p.tensor_parallel_degree
        shard = p.data_parallel_shard_degree
        if shard == -1:
            shard = 1 if world_size is None else max(1, world_size // (replicate * cp * tp))
        return cls(replicate=replicate, shard=shard, cp=cp, tp=tp)


def degree_complaints(config: JobConfig, world_size: int | None) -> list[str]:
    """Return why the degrees of `[parallelism]` do not multiply to `world_size` processes; None: to any number."""
    if world_size is not None and world_size < 1:
        return [f"{world_size} processes: there must be at least 1"]
    shard = config.parallelism.data_parallel_shard_degree
    if shard == 0 or shard < -1:
        return [f"parallelism.data_parallel_shard_degree = {shard}: must be -1 (all that are left) or >= 1"]
    layout = Layout._of(config, world_size)
    if world_size is None or layout.world_size == world_size:
        return []
    started = f"but {world_size} process(es) were started; change the degrees or the number of processes"
    return [f"parallelism: {layout}, {started}"]


def world_size() -> int:
    """Return the number of processes that the launcher started: torchrun's WORLD_SIZE, else 1. Raises ConfigError."""
    return launch_number("WORLD_SIZE", 1)


def launch_number(name: str, default: int | None = None) -> int:
    """Return a number that the launcher sets as an environment variable. Raises ConfigError where it is none."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text:
        raise ConfigError(f"{name}: is not set, though WORLD_SIZE is; torchrun sets both")
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} = {text!r}: must be a number; torchrun sets it") from None


def layout_complaints(config: JobConfig, layout: Layout) -> list[str]:
    """Return what of a job the layout cannot divide: each key, its value and what it must be a multiple of."""
    rows = global_batch_size(config, layout)
    per_rank = rows // layout.data_parallel
    local = min(config.training.local_batch_size, per_rank)
    loaders = layout.data_parallel * max(1, config.data.num_workers)
    cp, tp = layout.cp, layout.tp
    complaints = indivisible(
        ("data.lanes", config.data.lanes or loaders, loaders, "data-parallel ranks x data.num_workers"),
        ("training.seq_len", config.training.seq_len, cp * tp, f"{layout.sequence}, which split the sequence"),
    )
    if rows < layout.data_parallel:
        least = f"must be -1 or at least {layout.data_parallel}, one row per data-parallel rank"
        complaints.append(f"training.global_batch_size = {rows}: {least}")
    elif rows % layout.data_parallel:
        complaints += indivisible(("training.global_batch_size", rows, layout.data_parallel, "data-parallel ranks"))
    elif per_rank % local:
        complaints.append(
            f"training.local_batch_size = {local}: must divide the {per_rank} rows of a rank "
            f"(training.global_batch_size {rows} / {layout.data_parallel} data-parallel ranks)"
        )
    if config.data.layout == "padded" and config.data.pad_multiple % (cp * tp):
        step = f"data.pad_multiple = {config.data.pad_multiple}"
        complaints.append(f"{layout.sequence}: must divide {step}, of which padded widths are multiples")
    if config.data.length_buckets and per_rank == local:
        complaints.append(
            f"data.length_buckets = true: the {per_rank} rows of a rank's step are one micro-batch, so that nothing is there "
            "to assign them to; lower training.local_batch_size, or raise training.global_batch_size"
        )
    if config.parallelism.enable_async_tensor_parallel and not (tp > 1 and config.compile.enable):
        complaints.append(
            "parallelism.enable_async_tensor_parallel = true: needs parallelism.tensor_parallel_degree > 1 and "
            f"compile.enable = true, found {tp} and {str(config.compile.enable).lower()}; the compiler is what overlaps the two"
        )
    if config.activation_checkpoint.mode == "memory_budget" and not config.compile.enable:
        complaints.append('activation_checkpoint.mode = "memory_budget": is up to the compiler, set compile.enable = true')
    if not config.data.sources:
        complaints.append("data.sources: no [[data.sources]] table; name at least one source of documents, or the job's TOML")
    return complaints


def split_complaints(model: DecoderConfig, layout: Layout) -> list[str]:
    """Return what of a decoder the tensor-parallel ranks cannot divide among them."""
    keys = ("n_heads", "n_kv_heads", "hidden_dim", "vocab_size")
    why = "parallelism.tensor_parallel_degree"
    return indivisible(*((f"model.{key}", getattr(model, key), layout.tp, why) for key in keys))


def indivisible(*divisions: tuple[str, int, int, str]) -> list[str]:
    """Return a line for each (key, value, divisor, what the divisor is) whose value is no multiple of the divisor."""
    return [
        f"{key} = {value}: must be a multiple of {divisor} ({why}); the next is {-(-value // divisor) * divisor}"
        for key, value, divisor, why in divisions
        if value % divisor
    ]


def global_batch_size(config: JobConfig, layout: Layout) -> int:
    """Return the rows per optimizer step over all ranks."""
    t = config.training
    return t.local_batch_size * layout.data_parallel if t.global_batch_size == -1 else t.global_batch_size
