"""Open the data of a job: from `[data]` to a loader whose first rows have been checked against the eos contract."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...datasets.config import DataConfig
from ...datasets.errors import DataConfigError, DataEnd
from ...datasets.loading import ALL_DATA, Batch, DataShard, Loader, RowSettings, SinglePass
from ...datasets.rows import OBJECTIVES, Objective, ObjectiveSettings
from ...datasets.tokenizers import Tokenizer
from ...models.attention import DocumentMask
from ..build import Contract
from ..checkpoints import Found
from ..config import JobConfig
from ..processes import Layout, global_batch_size

SILENT_TOKENS = 2**24  # of the first batch; half a minute at the rate of rows of 10^6 tokens


@dataclass(frozen=True)
class TrainData:
    """Data to train on.

    Attributes:
        loader: of the job's sources.
        contract: what every party says about special ids.
        validation: what to validate on; None where `[validation]` is not enabled.
        first: the first batch; None before `begun`, and when the wait for it was interrupted.
    """

    loader: Loader
    contract: Contract
    validation: SinglePass | None
    first: Batch | None = None

    def begun(self, mask: DocumentMask, interrupted: Callable[[], bool] = lambda: False) -> "TrainData":
        """Fetch the first batch and hold it against the contract, and the first row of validation.

        Args:
            mask: the model's.
            interrupted: polled while waiting.

        Raises:
            DataError, EosMismatchError: the loader is closed again.
        """
        try:
            try:
                first = self.loader.next(interrupted)
            except DataEnd:  # the loader raises it again at the first step
                first = None
            if first is not None:
                self.contract.check_rows(first, self.loader.packer.objective, mask)
            if self.validation is not None:
                self.contract.check_rows(self.validation.first_row(), self.loader.packer.objective, mask)
        except BaseException:
            self.loader.close()
            raise
        return replace(self, first=first)


def make_objective(config: JobConfig, tokenizer: Tokenizer) -> Objective:
    """Return the objective of a job. Raises DataConfigError where the tokenizer cannot serve it."""
    settings = ObjectiveSettings(tokenizer=tokenizer, seed=config.training.seed, masking=config.mlm, classes=config.head.names)
    return OBJECTIVES[config.training.objective].build(settings)


def row_settings(config: JobConfig, layout: Layout, tokenizer: Tokenizer, *, batch_size: int, buckets: int = 1) -> RowSettings:
    """Return what the job decides about rows outside of `[data]`. Raises DataConfigError, see `make_objective`."""
    return RowSettings(
        seq_len=config.training.seq_len,
        seed=config.training.seed,
        batch_size=batch_size,
        objective=make_objective(config, tokenizer),
        buckets=buckets,
        rows_per_step=global_batch_size(config, layout),
    )


def data_config(config: JobConfig) -> DataConfig:
    """Return `[data]`; where labels are of whole documents, those that are too long are bad records."""
    return config.data.model_copy(update={"long_documents": "error"}) if config.has_head else config.data


def open_data(
    config: JobConfig,
    layout: Layout,
    tokenizer: Tokenizer,
    mask: DocumentMask,
    vocab_size: int,
    *,
    batch_size: int,
    buckets: int = 1,
    shard: DataShard = ALL_DATA,
    checkpoint: Found | None = None,
) -> TrainData:
    """Look up the files of a job, and compare what every party says of the contract; `TrainData.begun` reads rows.

    Args:
        config: of the job.
        layout: its processes.
        tokenizer: of the job.
        mask: the model's.
        vocab_size: rows of the embedding.
        batch_size: rows of a batch of this rank.
        buckets: batches whose rows are assigned by length.
        shard: which rows are this rank's, and where to continue.
        checkpoint: with the weights to start from.

    Raises:
        DataConfigError, DataError, EosMismatchError: the loader is closed again.
    """
    rows = row_settings(config, layout, tokenizer, batch_size=batch_size, buckets=buckets)
    loader = Loader(data_config(config), tokenizer, rows, shard)
    try:
        validation = open_validation(config, tokenizer, rows, shard)
        sources = [*loader.sources, *(validation.sources if validation else ())]
        contract = Contract.of_job(config, tokenizer, loader.packer, mask, vocab_size, sources, checkpoint)
        contract.check()
        if batch_size * rows.seq_len > SILENT_TOKENS and os.environ.get("RANK", "0") == "0":
            what = f"{batch_size} rows of {rows.seq_len:,} tokens"
            print(f"reading and packing the first {what}, which takes minutes where rows are this long", file=sys.stderr)
    except BaseException:
        loader.close()
        raise
    return TrainData(loader, contract, validation)


def open_validation(
    config: JobConfig, tokenizer: Tokenizer, rows: RowSettings, shard: DataShard = ALL_DATA
) -> SinglePass | None:
    """Open what `[validation]` reads; None where it is not enabled.

    Args:
        config: of the job.
        tokenizer: of the job.
        rows: as in training; `validation.local_batch_size`, where it is set, replaces the batch size.
        shard: whose share of the rows.

    Raises:
        DataConfigError, DataError: a source cannot be used.
    """
    if not config.validation.enable:
        return None
    rows = replace(rows, batch_size=config.validation.local_batch_size or rows.batch_size)
    try:
        return SinglePass(config.validation.sources, data_config(config), tokenizer, rows, shard)
    except DataConfigError as error:
        raise DataConfigError(f"validation.sources: {error}") from None
