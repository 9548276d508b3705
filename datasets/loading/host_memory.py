"""The host memory that one rank's data takes: what lanes, workers and the thread that reads ahead hold at most.

It follows from settings alone. Token shards are mapped into memory, and their pages are not counted: all processes
share them, and the system takes them back when it needs memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..config import DataConfig
from ..lanes import block_tokens
from ..readers import GROUP_BYTES, READERS, SourceFiles
from ..tokenizers import Tokenizer
from .loader import BYTES_PER_TOKEN, batches_ahead
from .sources import DEFAULT_LANES
from .transport import MESSAGES_PER_WORKER, message_rows


class LoaderMemory(NamedTuple):
    """Bytes over the rank's process and its workers.

    Attributes:
        blocks: Of lanes that read raw files: ids, and what was read ahead of them.
        messages: Rows on their way from workers.
        batches: Those that wait, and those of one step.
    """

    blocks: int
    messages: int
    batches: int


def loader_memory(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int,
    micro_batches: int,
    degree: int,
    validation: Sequence[SourceFiles],
) -> LoaderMemory:
    """Return what the data of one rank takes of its host.

    Args:
        config: What to read and how.
        tokenizer: Encodes documents.
        seq_len: Tokens per row.
        batch_size: Rows of a micro-batch.
        micro_batches: Of a step; all of them are at hand when it begins.
        degree: Data-parallel ranks, which share the lanes.
        validation: Further sources, of which the rank reads one lane each.
    """
    weights = np.dtype(np.float32).itemsize * (config.weighted or config.window_overlap > 0)
    per_id = np.dtype(tokenizer.dtype).itemsize
    most = config.lanes or max(DEFAULT_LANES, degree * max(1, config.num_workers))  # fewer may be chosen
    lanes = most // degree * _raw(config.sources) + _raw(validation)
    block = (block_tokens(seq_len) + seq_len) * (per_id + weights)
    read_ahead = GROUP_BYTES * (2 + per_id + weights)  # bytes of the next group, that group, and its ids
    building = max(1, config.num_workers) * block if lanes else 0  # joined from runs that are still there

    row = seq_len * (np.dtype(np.int32).itemsize + weights)
    messages = config.num_workers * MESSAGES_PER_WORKER * message_rows(seq_len) * row
    grouped = batch_size * micro_batches * row if config.length_buckets else 0
    batch = batch_size * seq_len * (BYTES_PER_TOKEN + weights)
    held = batches_ahead(batch_size, seq_len) + micro_batches
    return LoaderMemory(lanes * (block + read_ahead) + building, messages, held * batch + grouped)


def _raw(sources: Sequence[SourceFiles]) -> int:
    """Count the sources that are not token shards."""
    return sum(READERS[source.format] is not None for source in sources)
