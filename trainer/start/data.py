"""From `[data]` to a loader whose first rows have been held against the eos contract: what train, check and inspect open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from ...datasets.documents import DocumentConfig, Letters
from ...datasets.errors import DataConfigError, DataEnd
from ...datasets.files import FileStore
from ...datasets.loading import ALL_DATA, Batch, DataConfig, DataShard, Loader, RowSettings, SinglePass, SourceConfig, Stage
from ...datasets.readers import Label
from ...datasets.rows import DocumentLabels, MaskedTokens, MaskingConfig, NextToken, Objective
from ...datasets.tokenizers import Tokenizer
from ...models.attention import DocumentMask
from ..build import Statement, check_rows, check_statements, gather_statements
from ..checkpoints import Found
from ..config import Data, Files, JobConfig
from ..processes import Layout, global_batch_size


@dataclass(frozen=True)
class TrainData:
    """Data ready to train on.

    Attributes:
        loader: stands behind the first batch.
        first: that batch; None when the wait for it was interrupted.
        statements: what every party of the contract says.
        validation: what to validate on; None where `[validation]` is not enabled.
    """

    loader: Loader
    first: Batch | None
    statements: list[Statement]
    validation: SinglePass | None


def source_configs(tables: Sequence[Files], classes: tuple[str, ...]) -> tuple[SourceConfig, ...]:
    """The sources of `[[data.sources]]` or `[[validation.sources]]`, whose labels are of `classes`, or values."""
    return tuple(
        SourceConfig(
            **{
                **table.model_dump(),
                "paths": tuple(table.paths),
                "label": None if table.label is None else Label(table.label, classes),
            }
        )
        for table in tables
    )


def make_objective(config: JobConfig, tokenizer: Tokenizer) -> Objective:
    """What `training.objective` asks of rows. Raises DataConfigError where the tokenizer cannot serve it."""
    if config.training.objective == "causal":
        return NextToken()
    if config.has_head:
        return DocumentLabels(config.head.names)
    m = config.mlm
    masking = MaskingConfig(rate=m.mask_rate, schedule=m.rate_schedule, mask_share=m.mask_share, random_share=m.random_share)
    return MaskedTokens(masking, tokenizer, config.training.seed)


def letters_of(data: Data) -> Letters:
    """What `[data]` says about letters."""
    return Letters(**{field.name: getattr(data, field.name) for field in fields(Letters)})


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


def make_data_config(config: JobConfig) -> DataConfig:
    """The data path's share of the configuration."""
    d = config.data
    return DataConfig(
        sources=source_configs(d.sources, config.head.names),
        stages=tuple(Stage(stage.step, stage.weights) for stage in d.stages),
        lanes=d.lanes,
        packing=d.packing,
        layout=d.layout,
        documents=DocumentConfig(
            letters=letters_of(d),
            reverse_complement=d.reverse_complement,
            long_documents="error" if config.has_head else d.long_documents,  # a label is of the whole document
            window_overlap=d.window_overlap,
        ),
        pad_multiple=d.pad_multiple,
        num_workers=d.num_workers,
        on_bad_record=d.on_bad_record,
        verify=d.verify,
        storage=FileStore(cache_dir=d.cache_dir, cache_gb=d.cache_gb, retries=d.retries),
    )


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
    interrupted: Callable[[], bool] = lambda: False,
) -> TrainData:
    """Start the loader and hold the contract, first in words and then against the first real rows.

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
        interrupted: polled while waiting.

    Raises:
        DataConfigError, DataError, EosMismatchError: the loader is closed again.
    """
    rows = row_settings(config, layout, tokenizer, batch_size=batch_size, buckets=buckets)
    loader = Loader(make_data_config(config), tokenizer, rows, shard)
    try:
        validation = open_validation(config, tokenizer, rows, shard)
        sources = [*loader.sources, *(validation.sources if validation else ())]
        statements = gather_statements(config, tokenizer, loader.packer, mask, vocab_size, sources, checkpoint)
        check_statements(statements)
        try:
            first = loader.next(interrupted)
        except DataEnd:  # said again when the first step asks for its rows
            first = None
        if first is not None:
            check_rows(first, loader.packer.objective, mask, statements)
        if validation is not None:
            check_rows(validation.first_row(), loader.packer.objective, mask, statements)
    except BaseException:
        loader.close()
        raise
    return TrainData(loader, first, statements, validation)


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
    data = replace(make_data_config(config), sources=source_configs(config.validation.sources, config.head.names), stages=())
    rows = replace(rows, batch_size=config.validation.local_batch_size or rows.batch_size)
    try:
        return SinglePass(data, tokenizer, rows, shard)
    except DataConfigError as error:
        raise DataConfigError(f"validation.sources: {error}") from None
