"""The memory that one process of a job takes of its host, its loader workers included."""

from ...datasets.loading import loader_memory
from ...datasets.tokenizers import Tokenizer
from ...models.config import DecoderConfig, Executor
from ..checkpoints import pinned_bytes, staging_bytes
from ..config import JobConfig
from ..processes import Layout
from .memory import JobOnDevice, checkpoint_bytes, estimate, peak_of

HOST = {
    "programs": "Python, torch and the tokenizer, in each loader worker too: what `cistron check` has of them here",
    "model": "what the table of the device has at its peak, where the device is the host's CPU",
    "documents": "lanes of raw files: a block of ids each, and what is read ahead; mapped token shards take none",
    "messages": "rows on their way from loader workers",
    "batches": "those made ahead, and those of one step",
    "pinned": "batches on their way to a GPU, in powers of two",
    "checkpoint": "the copy that is written while training goes on; with a GPU in slabs of 1 GiB",
}


def host_estimate(
    config: JobConfig,
    decoder: DecoderConfig,
    tokenizer: Tokenizer,
    layout: Layout,
    executor: Executor,
    device: str,
    programs: int | None,
) -> dict[str, float]:
    """Return the bytes of one process by what they hold, with the keys of `HOST`.

    Not counted: the CUDA context and NCCL's buffers, the compiler, a sink's or a tracer's records, files that the
    system caches, and what one document, one parquet row group or one remote file takes beyond a group of documents.

    Args:
        config: of the job.
        decoder: the model's shape.
        tokenizer: of the job.
        layout: the processes; all of them take alike.
        executor: of attention.
        device: "cpu" or "cuda".
        programs: bytes of a process that has no data and no model yet; None: not known.
    """
    job, pinned = JobOnDevice(config, decoder, layout, executor, device), device == "cuda"
    loader = loader_memory(
        config.data,
        tokenizer,
        seq_len=config.training.seq_len,
        batch_size=job.rows,
        micro_batches=job.micro_batches,
        degree=layout.data_parallel,
        validation=config.validation.sources if config.validation.enable else (),
    )
    saved = checkpoint_bytes(config, decoder) // layout.world_size
    copied = config.checkpoint.enable and config.checkpoint.async_mode == "async"
    planes = [pinned_bytes(size * job.rows * config.training.seq_len) for size in (8, 8, 4, 4)]
    return {
        "programs": (programs or 0) * (1 + config.data.num_workers),
        "model": 0.0 if pinned else peak_of(estimate(config, decoder, layout, executor, device)).size,
        "documents": loader.blocks,
        "messages": loader.messages,
        "batches": loader.batches,
        "pinned": job.batches_at_hand * sum(planes) if pinned else 0.0,
        "checkpoint": staging_bytes(saved, pinned=pinned) if copied else 0.0,
    }
