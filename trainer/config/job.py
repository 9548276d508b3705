"""The configuration of a job: all tables of a TOML, what does not fit together in them, and what to say about the job.

pydantic refuses wrong types and unknown keys. All other mistakes are lines of `complaints`, collected over every table
and raised as one error. `load.py` joins both kinds into one message.
"""

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationInfo, model_validator

from ...base import PathText, Table, changed, without_credentials
from ...datasets.config import DataConfig
from ...datasets.rows import OBJECTIVES, MaskingConfig
from ...datasets.tokenizers import TokenizerConfig
from ...models.config import HeadConfig, ModelConfig
from .tables import (
    ActivationCheckpoint,
    Checkpoint,
    Comm,
    Compile,
    Eval,
    FineTuning,
    Float8,
    Job,
    LrScheduler,
    Metrics,
    OptimizerConfig,
    Parallelism,
    Profiling,
    SkipStep,
    Training,
    ValidationConfig,
)


class JobConfig(Table):
    """Train a decoder on eos-delimited packed rows. An option is a TOML key: --training.steps is [training] steps."""

    extends: PathText | None = None
    """Another TOML, relative to this one, whose keys this one starts from."""
    job: Job = Job()
    model: ModelConfig = ModelConfig.model_validate({})
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    training: Training = Training()
    mlm: MaskingConfig = MaskingConfig()
    head: HeadConfig = HeadConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    skip_step: SkipStep = SkipStep()
    lr_scheduler: LrScheduler = LrScheduler()
    parallelism: Parallelism = Parallelism()
    compile: Compile = Compile()
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint()
    float8: Float8 = Float8()
    fine_tuning: FineTuning = FineTuning()
    checkpoint: Checkpoint = Checkpoint()
    validation: ValidationConfig = ValidationConfig()
    eval: Eval = Eval()
    metrics: Metrics = Metrics()
    profiling: Profiling = Profiling()
    comm: Comm = Comm()

    @model_validator(mode="after")
    def raise_complaints(self, info: ValidationInfo) -> "JobConfig":
        """Raise all complaints as one error; with a list as the validation's context, append them to it instead."""
        lines = complaints_of(self)
        if isinstance(info.context, list):
            info.context.extend(lines)
        elif lines:
            raise ValueError("\n".join(lines))
        return self

    def complaints(self) -> list[str]:
        """Return the contradictions between tables, and the tables that nothing reads."""
        bidirectional = [] if self.causal else self.model.bidirectional_complaints()
        return [*training_complaints(self), *bidirectional, *label_complaints(self), *extrapolation_complaints(self)]

    @property
    def has_head(self) -> bool:
        """Whether the model predicts labels of whole documents."""
        return OBJECTIVES[self.training.objective].labels

    @property
    def causal(self) -> bool:
        """Whether a token attends only to those before it."""
        needed = OBJECTIVES[self.training.objective].causal is not False
        return needed if self.model.causal is None else self.model.causal

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values to be kept, without credentials and unset keys."""
        values: dict[str, Any] = without_credentials(self.model_dump(exclude_none=True, exclude={"extends"}))
        return values

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML that reads back to the same job, but for credentials in URLs."""
        return tomli_w.dumps(self.to_dict())

    def remarks(self, step: int) -> list[str]:
        """Return notes and warnings about a job that starts at `step`."""
        steps, warmup = self.training.steps, self.lr_scheduler.warmup_steps
        remarks = []
        if warmup > steps:
            remarks.append(f"warning: optimizer.lr is never reached: warmup_steps = {warmup}, training.steps = {steps}")
        if (self.fine_tuning.freeze or self.fine_tuning.lora.rank) and not (self.checkpoint.initial_load_path or step):
            remarks.append("warning: [fine_tuning] freezes untrained weights: no checkpoint.initial_load_path")
        if self.validation.sources and not (self.validation.enable or self.eval.extrapolation.enable):
            remarks.append("validation.sources are not read: validation.enable is false")
        if step >= steps:
            remarks.append(f"nothing to train: the checkpoint is of step {step}, training.steps is {steps}")
        return remarks

    def hints(self, step: int, checkpoints: str) -> list[str]:
        """Return what can be done with a run that has ended after `step`."""
        folder = Path(self.job.dump_folder)
        hints = [f"run         {folder}", f"watch       tensorboard --logdir {folder}/tensorboard"]
        if self.checkpoint.enable and step:
            without = " without --checkpoint.load_step" if self.checkpoint.load_step >= 0 else ""
            more = "" if step < self.training.steps else f" with --training.steps {2 * step}"
            hints.append(f"resume      the same command{without}{more} goes on after step {step}")
            if self.training.objective == "causal":
                hints.append(f"try it      cistron generate {checkpoints} --prompt TEXT")
        return hints


def complaints_of(table: Table, key: str = "") -> list[str]:
    """Return the complaints of all tables in a table, then its own.

    Args:
        table: tables name their keys in full; those of a list do not know their place, which is put before their lines.
        key: where the table stands in the TOML: "model.rope".
    """
    lines: list[str] = []
    for name in type(table).model_fields:
        value, place = getattr(table, name), f"{key}.{name}".lstrip(".")
        if isinstance(value, Table):
            lines += complaints_of(value, place)
        elif isinstance(value, list):
            elements = [(index, element) for index, element in enumerate(value) if isinstance(element, Table)]
            lines += [f"{place}.{index}.{line}" for index, element in elements for line in complaints_of(element)]
    return lines + table.complaints()


def training_complaints(config: JobConfig) -> list[str]:
    """Return the contradictions between tables of the model and of training, labels aside."""
    objective, causal = config.training.objective, config.model.causal
    lines = []
    needed = OBJECTIVES[objective].causal
    if causal is not None and needed is not None and causal != needed:
        why = "a token would see the one it is asked for" if needed else "what is hidden is told from both sides"
        lines.append(f'model.causal = {str(causal).lower()}: training.objective = "{objective}" needs the other; {why}')
    if objective != "mlm" and config.mlm != MaskingConfig():
        lines.append(f'mlm: is not read with training.objective = "{objective}"; leave the table out, or set "mlm"')
    if config.fine_tuning.lora.rank and config.float8.enable:
        lines.append("float8.enable = true: its layers have no adapters; leave it out, or fine_tuning.lora.rank")
    return lines


def label_complaints(config: JobConfig) -> list[str]:
    """Return what does not fit together about labels of documents."""
    objective, data, classes = config.training.objective, config.data, config.head.classes
    lines = []
    for key, sources in (("data.sources", data.sources), ("validation.sources", config.validation.sources)):
        for index, source in enumerate(sources):
            if source.label is None and config.has_head:
                lines.append(f'{key}.{index}.label: missing; training.objective = "{objective}" reads labels')
            if source.label is not None and not config.has_head:
                lines.append(f'{key}.{index}.label = {source.label!r}: training.objective = "{objective}" reads no labels')
    if not config.has_head and config.head != HeadConfig():
        lines.append(f'head: is not read with training.objective = "{objective}"; leave the table out')
    if config.has_head and config.training.loss_chunk_tokens:
        lines.append(
            f"training.loss_chunk_tokens = {config.training.loss_chunk_tokens}: is about logits of tokens, and "
            f'training.objective = "{objective}" has none; leave it out'
        )
    if objective == "classification" and len(classes) < 2:
        lines.append(f"head.classes = {classes}: classification needs two or more, as the data writes them")
    if objective == "regression" and classes:
        lines.append(f"head.classes = {classes}: regression has values and no classes; leave them out")
    if config.has_head and data.packing == "concat":
        lines.append(f'data.packing = "concat": cuts documents, and training.objective = "{objective}" needs them whole')
    if config.has_head and data.long_documents in ("window", "truncate"):
        lines.append(
            f'data.long_documents = "{data.long_documents}": a label is of the whole document, so with training.objective = '
            f'"{objective}" one that is longer than a row is a bad record; leave it out, or set "error"'
        )
    for key in ("lowercase_weight", "exclude_tags", "exclude_degenerate", "normalize_weights"):
        if config.has_head and changed(data, key):
            lines.append(
                f"data.{key} = {getattr(data, key)}: weighs tokens, "
                f'and training.objective = "{objective}" asks for none; leave it out'
            )
    if config.has_head and config.parallelism.context_parallel_degree > 1:
        lines.append(
            f"parallelism.context_parallel_degree = {config.parallelism.context_parallel_degree}: "
            f'training.objective = "{objective}" pools over documents, whose rows must be whole on a rank; set 1'
        )
    return lines


def extrapolation_complaints(config: JobConfig) -> list[str]:
    """Return why `[eval.extrapolation]` cannot run in training."""
    if not config.eval.extrapolation.enable:
        return []
    lines = []
    if not config.validation.sources:
        lines.append("eval.extrapolation.enable = true: reads [[validation.sources]], and there is none")
    if config.training.objective != "causal":
        lines.append(
            f'eval.extrapolation.enable = true: training.objective = "{config.training.objective}" predicts no next token; '
            'it needs "causal"'
        )
    if config.compile.enable:
        lines.append(
            "eval.extrapolation.enable = true: every length and method would be compiled anew; set compile.enable = false, or "
            "run `cistron evaluate --extrapolate` on checkpoints"
        )
    return lines
