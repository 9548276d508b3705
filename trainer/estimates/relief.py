"""What of a job's configuration could change so that it takes less memory, and by how much: each change by itself."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from ...base import Table
from ..config import JobConfig
from ..processes import Layout, global_batch_size, layout_complaints, split_complaints
from .memory import JobOnDevice

WORTH_SAYING = 0.01  # of what the job takes


@dataclass(frozen=True)
class Relief:
    """A change of the configuration.

    Attributes:
        change: the keys with their values, and what they are now.
        saved: bytes that it takes off.
    """

    change: str
    saved: float


def reliefs(job: JobOnDevice, size: Callable[[JobConfig, Layout], float]) -> list[Relief]:
    """Return the changes that a job has not made yet and that help, the largest effect first.

    Args:
        job: as it is.
        size: returns the bytes that a job takes on a layout.
    """
    now = size(job.config, job.layout)
    found = [
        Relief(change, now - size(other, spread))
        for change, other, spread in changes(job)
        if not layout_complaints(other, spread) and not split_complaints(job.decoder, spread)
    ]
    return sorted((relief for relief in found if relief.saved > WORTH_SAYING * now), key=lambda relief: -relief.saved)


def changes(job: JobOnDevice) -> Iterator[tuple[str, JobConfig, Layout]]:
    """Yield changes that save memory in some jobs, each as its text, and the configuration and layout that it makes."""
    config, layout = job.config, job.layout
    rows = global_batch_size(config, layout)
    fixed = config.replace(training=config.training.replace(global_batch_size=rows))  # also on more processes
    seq_len = config.training.seq_len
    own_rows = rows // layout.data_parallel
    local = min(config.training.local_batch_size, own_rows)
    fewer = next((size for size in range(local // 2, 0, -1) if own_rows % size == 0), None)

    values: list[tuple[str, str, Any, str]] = [
        ("activation_checkpoint", "mode", "selective", "recomputes the cheaper half of each block"),
        ("activation_checkpoint", "mode", "full", "recomputes every block"),
        ("parallelism", "fsdp_reshard_after_forward", "always", "gathers blocks again in the backward pass"),
        ("training", "mixed_precision_param", "bfloat16", "computes in 16 bits"),
        ("training", "dtype", "bfloat16", "keeps parameters and gradients in 16 bits"),
        ("optimizer", "state_dtype", "bfloat16", "keeps the moments in 16 bits"),
        ("compile", "enable", True, "keeps less for the backward pass"),
        ("data", "num_workers", config.data.num_workers // 2, "rows come slower"),
        ("checkpoint", "async_mode", "disabled", "training waits for every save"),
        ("training", "seq_len", seq_len // 2, "shorter rows: another job"),
    ]
    if chunk := job.loss_chunk // 2:
        why = f"logits of {job.loss_chunk:,} tokens at once now; the output's gradient is read and written more often"
        values.append(("training", "loss_chunk_tokens", chunk, why))
    if fewer:
        why = f"the same step in more micro-batches; training.global_batch_size = {rows}"
        values.append(("training", "local_batch_size", fewer, why))
    for table, key, value, why in values:
        if (other := with_value(fixed, table, key, value)) is not None:
            now = json.dumps(getattr(getattr(fixed, table), key))  # as a TOML has it
            yield f"{table}.{key} = {json.dumps(value)}, now {now}: {why}", other, layout

    if layout.replicate > 1:
        shared = replace(layout, replicate=1, shard=layout.shard * layout.replicate)
        key = "parallelism.data_parallel_replicate_degree"
        yield f"{key} = 1, now {layout.replicate}: all data-parallel ranks share the parameters", fixed, shared
    more = f"on {2 * layout.world_size} processes, now {layout.world_size}"
    for degree, name in (("shard", "data_parallel_shard"), ("cp", "context_parallel"), ("tp", "tensor_parallel")):
        twice = 2 * getattr(layout, degree)
        if degree == "shard":
            yield f"parallelism.{name}_degree = {twice}, {more}", fixed, replace(layout, shard=twice)
        elif (other := with_value(fixed, "parallelism", f"{name}_degree", twice)) is not None:
            yield f"parallelism.{name}_degree = {twice}, {more}", other, replace(layout, **{degree: twice})


def with_value(config: JobConfig, table: str, key: str, value: Any) -> JobConfig | None:
    """Return the configuration with another value of one key; None where that is the present one, or refused."""
    present: Table = getattr(config, table)
    if value == getattr(present, key):
        return None
    try:
        return config.replace(**{table: present.replace(**{key: value})})
    except ValidationError:
        return None
