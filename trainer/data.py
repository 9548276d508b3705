"""From `[data]` to a loader whose first rows have been held against the eos contract: what train, check and inspect open."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..datasets.errors import DataEnd
from ..datasets.files import Storage
from ..datasets.loader import Batch, DataConfig, Loader, SourceConfig, Stage
from ..datasets.tokenizers import Tokenizer
from ..models.masks import DocumentMask
from .config import JobConfig
from .contract import Statement, check_rows, check_statements, gather_statements
from .distributed import Layout
from .parallelize import global_batch_size


@dataclass(frozen=True)
class Feed:
    """Data ready to train on.

    Attributes:
        loader: stands behind the first batch.
        first: that batch; None when the wait for it was interrupted.
        statements: what every party of the contract says.
    """

    loader: Loader
    first: Batch | None
    statements: list[Statement]


def make_data_config(config: JobConfig, layout: Layout) -> DataConfig:
    """The data path's share of the configuration. A stage begins with the first row of its step."""
    d, t = config.data, config.training
    rows = global_batch_size(config, layout)
    return DataConfig(
        sources=tuple(SourceConfig(**{**s.model_dump(), "paths": tuple(s.paths)}) for s in d.sources),
        stages=tuple(Stage((stage.step - 1) * rows, stage.weights) for stage in d.stages),
        lanes=d.lanes,
        packing=d.packing,
        layout=d.layout,
        seq_len=t.seq_len,
        seed=t.seed,
        num_workers=d.num_workers,
        on_bad_record=d.on_bad_record,
        verify=d.verify,
        storage=Storage(cache_dir=d.cache_dir, cache_gb=d.cache_gb, retries=d.retries),
    )


def open_feed(
    config: JobConfig,
    layout: Layout,
    tokenizer: Tokenizer,
    mask: DocumentMask,
    vocab_size: int,
    *,
    batch_size: int,
    contract: dict[str, Any] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    **place: Any,
) -> Feed:
    """Start the loader and hold the contract, first in words and then against the first real rows.

    Args:
        config: of the job.
        layout: its processes.
        tokenizer: of the job.
        mask: the model's.
        vocab_size: rows of the embedding.
        batch_size: rows of a batch of this rank.
        contract: saved with the weights to start from.
        interrupted: polled while waiting.
        place: which rows are this rank's, and where to go on; see `Loader`. Without: all, from the first.

    Raises:
        DataConfigError, DataError, EosMismatchError: the loader is closed again.
    """
    loader = Loader(make_data_config(config, layout), tokenizer, batch_size=batch_size, **place)
    try:
        statements = gather_statements(config, tokenizer, loader.packer, mask, vocab_size, loader.sources, contract)
        check_statements(statements)
        try:
            first = loader.next(interrupted)
        except DataEnd:  # said again when the first step asks for its rows
            first = None
        if first is not None:
            check_rows(first, mask, statements)
    except BaseException:
        loader.close()
        raise
    return Feed(loader, first, statements)
