"""Part of trainer/processes."""

import os
from dataclasses import dataclass

from ...models.config import DecoderConfig
from ..config import JobConfig
from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism; their product is the number of processes."""

    replicate: int
    shard: int
    cp: int
    tp: int

    def __str__(self) -> str:
        """As arithmetic."""
        return f"replicate {self.replicate} x shard {self.shard} x context {self.cp} x tensor {self.tp} = {self.world_size}"

    @property
    def data_parallel(self) -> int:
        """Ranks with rows of their own."""
        return self.replicate * self.shard

    @property
    def world_size(self) -> int:
        """Processes in all."""
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
        p = config.parallelism
        if world_size is not None and world_size < 1:
            raise ConfigError(f"{world_size} processes: there must be at least 1")
        replicate, cp, tp = p.data_parallel_replicate_degree, p.context_parallel_degree, p.tensor_parallel_degree
        shard = p.data_parallel_shard_degree
        if shard == 0 or shard < -1:
            raise ConfigError(f"parallelism.data_parallel_shard_degree = {shard}: must be -1 (all that are left) or >= 1")
        if shard == -1:
            shard = 1 if world_size is None else max(1, world_size // (replicate * cp * tp))
        layout = cls(replicate=replicate, shard=shard, cp=cp, tp=tp)
        if world_size is not None and layout.world_size != world_size:
            raise ConfigError(
                f"parallelism: {layout}, but {world_size} process(es) were started; "
                "change the degrees or the number of processes"
            )
        return layout


def world_size() -> int:
    """Processes that the launcher started: torchrun's WORLD_SIZE, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_layout(config: JobConfig, model: DecoderConfig, layout: Layout) -> None:
    """Refuse what the layout cannot divide, all complaints in one message.

    Raises:
        ConfigError: naming each key, its value and what it must be a multiple of.
    """
    rows = global_batch_size(config, layout)
    per_rank = rows // layout.data_parallel
    local = min(config.training.local_batch_size, per_rank)
    loaders = layout.data_parallel * max(1, config.data.num_workers)
    cp, tp = layout.cp, layout.tp
    # (key, value, must be a multiple of, why)
    divisions = [
        ("training.global_batch_size", rows, layout.data_parallel, "data-parallel ranks"),
        ("data.lanes", config.data.lanes, loaders, "data-parallel ranks x data.num_workers"),
        ("training.seq_len", config.training.seq_len, cp * tp, f"{layout.sequence}, which split the sequence"),
        ("model.n_heads", model.n_heads, tp, "parallelism.tensor_parallel_degree"),
        ("model.n_kv_heads", model.n_kv_heads, tp, "parallelism.tensor_parallel_degree"),
        ("model.hidden_dim", model.hidden_dim, tp, "parallelism.tensor_parallel_degree"),
        ("model.vocab_size", model.vocab_size, tp, "parallelism.tensor_parallel_degree"),
    ]
    complaints = [
        f"{key} = {value}: must be a multiple of {divisor} ({why}); the next is {-(-value // divisor) * divisor}"
        for key, value, divisor, why in divisions
        if value % divisor
    ]
    if per_rank and rows % layout.data_parallel == 0 and per_rank % local:
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
            "to deal them out to; lower training.local_batch_size, or raise training.global_batch_size"
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
    if complaints:
        raise ConfigError("\n  ".join(["the configuration does not fit:", *complaints]))


def global_batch_size(config: JobConfig, layout: Layout) -> int:
    """Rows per optimizer step over all ranks. Raises ConfigError for a value below the number of data-parallel ranks."""
    t = config.training
    rows = t.local_batch_size * layout.data_parallel if t.global_batch_size == -1 else t.global_batch_size
    if rows < layout.data_parallel:
        raise ConfigError(
            f"training.global_batch_size = {t.global_batch_size}: must be -1 or at least {layout.data_parallel}, one row per "
            "data-parallel rank"
        )
    return rows
