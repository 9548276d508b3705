"""The job's configuration: one class per TOML table, every field documented where it is declared.

A TOML file (and the files it `extends`) plus `--section.key value` overrides become one frozen `JobConfig`. pydantic-settings
reads both sources and validates strictly; this file adds the two things a person needs from the answer: every mistake at
once, and the nearest valid name for a misspelt key. The attribute docstrings below are the `--help` text.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Degree = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class ConfigError(ValueError):
    """A user's mistake in the TOML, on the command line, or in how the two fit the machines."""


class Table(BaseModel):
    """What all TOML tables share: unknown keys refused, no silent conversion ("7" is not 7), immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Job(Table):
    """Where the run lives."""

    dump_folder: str = "outputs"
    """Folder of this run: metrics.jsonl, TensorBoard files, checkpoints, the resolved config."""
    description: str = ""
    """One line about the job, for people."""


class Rope(Table):
    """Rotary position embedding."""

    theta: float | None = None
    """Base of the rotary frequencies; unset: the preset's."""


class Model(Table):
    """The decoder: a preset and what to change in it. Unset keys keep the preset's value."""

    preset: str = "debug"
    """Shape to start from: debug, llama3_1b, llama3_8b, llama3_70b, qwen3_0.6b, qwen3_8b."""
    vocab_size: Positive | None = None
    """Rows of the embedding table; unset: the tokenizer's vocabulary. May be larger, never smaller."""
    eos_id: NonNegative | None = None
    """Id that ends a document, as the attention mask reads it; unset: the tokenizer's. Checked against every other party."""
    attention: Literal["auto", "flex", "varlen", "sdpa"] = "auto"
    """Executor of the document mask; auto: flex on CUDA, sdpa (dense mask) on CPU."""
    dim: Positive | None = None
    """Width of the residual stream."""
    n_layers: Positive | None = None
    """Number of transformer blocks."""
    n_heads: Positive | None = None
    """Number of query heads."""
    n_kv_heads: Positive | None = None
    """Number of key and value heads (grouped-query attention)."""
    head_dim: Positive | None = None
    """Width of one head."""
    hidden_dim: Positive | None = None
    """Width of the SwiGLU feed-forward."""
    norm_eps: float | None = None
    """Epsilon of the RMS norms."""
    qk_norm: bool | None = None
    """RMS-normalise queries and keys per head (Qwen3)."""
    tie_embeddings: bool | None = None
    """Use the embedding table as the output projection."""
    rope: Rope = Rope()
    """Rotary position embedding."""


class TokenizerTable(Table):
    """From text or bytes to ids."""

    kind: Literal["byte", "hf"] = "byte"
    """byte: raw UTF-8 bytes, eos 0, pad 1, vocabulary 512. hf: any Hugging Face tokenizer.json."""
    path: str | None = None
    """hf: the tokenizer.json or the folder that holds it."""
    eos_token: str | None = None
    """hf: the token that ends a document; unset: tokenizer_config.json's."""
    pad_token: str | None = None
    """hf: the padding token; unset: tokenizer_config.json's, else the eos (safe: labels go by position)."""


class Source(Table):
    """One source of documents."""

    name: str
    """Name in logs and in the checkpointed data state."""
    format: Literal["text", "jsonl", "fasta"]
    """text: a file is a document. jsonl: a line. fasta: a record. Each may be gzipped (.gz)."""
    paths: list[str] = Field(min_length=1)
    """Files, globs or fsspec URLs; {stdlib} is the folder of Python's standard library."""
    field: str = "text"
    """jsonl: the key that holds the document."""
    weight: float = Field(default=1.0, gt=0.0)
    """Relative share of packed rows, hence of tokens."""


class Data(Table):
    """From files to packed rows."""

    sources: list[Source] = Field(default_factory=list)
    """The [[data.sources]] tables."""
    lanes: Positive = 16
    """Independent row streams; a multiple of data-parallel ranks x workers. Row i comes from lane i mod lanes."""
    packing: Literal["best_fit", "concat"] = "best_fit"
    """best_fit: whole documents, least padding. concat: classic concatenate-and-chunk."""
    num_workers: NonNegative = 0
    """Loader processes per rank; 0 reads ahead in a thread. Any value gives the same rows."""


class Training(Table):
    """The optimisation loop."""

    seq_len: Annotated[int, Field(ge=2)] = 2048
    """Tokens per row."""
    local_batch_size: Positive = 8
    """Largest number of rows in one forward pass of one rank; more are accumulated."""
    global_batch_size: int = -1
    """Rows per optimizer step over all ranks; -1: local_batch_size x data-parallel ranks."""
    steps: Positive = 1000
    """Optimizer steps of the whole job."""
    max_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this global 2-norm."""
    seed: NonNegative = 0
    """Decides initial weights and the order of the data."""
    mixed_precision_param: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of parameters and activations in forward and backward; master weights stay float32."""
    mixed_precision_reduce: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are summed over ranks."""
    gc_freq: Positive = 50
    """Steps between runs of Python's garbage collector, which would otherwise stall ranks at different moments."""


class Optimizer(Table):
    """AdamW. Weight decay applies to matrices, not to norms."""

    name: Literal["AdamW"] = "AdamW"
    """The algorithm."""
    lr: float = Field(default=8e-4, gt=0.0)
    """Peak learning rate."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay."""


class LrScheduler(Table):
    """Warmup, stable, decay: factors on optimizer.lr as a pure function of the step."""

    warmup_steps: NonNegative = 200
    """Steps of linear warmup from zero."""
    decay_ratio: Fraction = 0.2
    """Share of training.steps spent decaying at the end."""
    decay_type: Literal["linear", "cosine", "sqrt"] = "linear"
    """Shape of the decay; sqrt is 1 - sqrt(progress)."""
    min_lr_factor: Fraction = 0.0
    """Factor that the decay ends at."""


class Parallelism(Table):
    """How ranks divide the work. The degrees multiply to the number of processes."""

    data_parallel_replicate_degree: Degree = 1
    """Copies of the sharded model (HSDP)."""
    data_parallel_shard_degree: int = -1
    """Ranks that share one copy of parameters, gradients and optimizer state (FSDP2); -1: all that are left."""
    tensor_parallel_degree: Degree = 1
    """Ranks that split every matrix and, between the norms, the sequence."""
    context_parallel_degree: Literal[1] = 1
    """Ranks that split the sequence of attention: only 1 so far."""


class Compile(Table):
    """torch.compile."""

    enable: bool = False
    """Compile every transformer block."""


class ActivationCheckpoint(Table):
    """Activation checkpointing."""

    mode: Literal["none", "full"] = "none"
    """full: keep only each block's input and recompute the rest in the backward pass."""


class Checkpoint(Table):
    """What a run leaves behind to continue from."""

    enable: bool = True
    """Save and resume."""
    folder: str = "checkpoint"
    """Folder inside job.dump_folder; checkpoints are step-<N> in it."""
    interval: Positive = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_latest_k: NonNegative = 3
    """Checkpoints to keep; 0 keeps all."""
    load_step: Annotated[int, Field(ge=-1)] = -1
    """Step to resume from; -1: the newest complete one, 0: none, start afresh."""
    initial_load_path: str | None = None
    """A checkpoint (…/step-N) of another run whose weights to start from; ignored once this run has its own."""


class Metrics(Table):
    """What is reported."""

    log_freq: Positive = 10
    """Steps between console lines, metrics.jsonl records and TensorBoard points."""
    enable_tensorboard: bool = True
    """Write TensorBoard files to job.dump_folder/tensorboard."""
    peak_flops: float | None = Field(default=None, gt=0.0)
    """Peak FLOP/s of one device, for MFU on devices Cistron does not know."""


class Comm(Table):
    """Process groups."""

    timeout_seconds: Positive = 600
    """A collective that takes longer ends the run instead of hanging."""


class JobConfig(BaseSettings):
    """Train a decoder on eos-delimited packed rows. Every key is a TOML key too: --training.steps is [training] steps."""

    model_config = SettingsConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, cli_use_class_docs_for_groups=True
    )

    extends: str | None = None
    """Another TOML, relative to this one, whose keys this one starts from."""
    job: Job = Job()
    model: Model = Model()
    tokenizer: TokenizerTable = TokenizerTable()
    data: Data = Data()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    lr_scheduler: LrScheduler = LrScheduler()
    parallelism: Parallelism = Parallelism()
    compile: Compile = Compile()
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()
    comm: Comm = Comm()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_config` hands over: environment variables never change a job."""
        return (init_settings,)

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain values; unset keys are left out, as TOML has no null."""
        return self.model_dump(exclude_none=True, exclude={"extends"})

    def to_toml(self) -> str:
        """The resolved configuration as TOML that reads back to the same job."""
        return tomli_w.dumps(self.to_dict())


class OverrideParser(argparse.ArgumentParser):
    """argparse that refuses abbreviations and answers an unknown flag with the nearest known one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """`--training.step` is a misspelling here, not short for `--training.steps`."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage (80 lines of keys) and exiting."""
        known = list(self._option_string_actions)
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        if unknown:
            message = "; ".join(f"unknown option {word}{nearest(word.split('=')[0], known)}" for word in unknown)
        raise ConfigError(f"command line: {message}")


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean …?` for a misspelt name, or the list of names when none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(known)[:30])}"


def load_config(argv: Sequence[str], prog: str = "cistron train") -> tuple[JobConfig, argparse.Namespace]:
    """Read `--config FILE` (or just `FILE`, in front), the files it extends and the overrides in `argv`.

    Returns:
        The validated configuration and the namespace of the non-config options (`config`, `print_config`).

    Raises:
        ConfigError: one message listing every mistake: file, key, value found, what would be right.
    """
    parser = OverrideParser(prog=prog, description=JobConfig.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="TOML file of the job")
    parser.add_argument("--print-config", action="store_true", help="print the resolved TOML and exit")
    cli: CliSettingsSource[Any] = CliSettingsSource(JobConfig, root_parser=parser, cli_parse_args=False)
    options = parser.parse_args(["--config", *argv] if argv and not argv[0].startswith("-") else argv)
    try:
        overrides = cli(parsed_args=options)()
    except SettingsError as error:
        raise ConfigError(f"command line: {error}; lists and tables are written as JSON") from None
    files = extends_chain(Path(options.config)) if options.config else []
    toml = TomlConfigSettingsSource(JobConfig, toml_file=files or None, deep_merge=True)
    merged = deep_merge(toml() if files else {}, overrides)
    try:
        return JobConfig(**merged), options
    except ValidationError as error:
        where = ", ".join(map(str, files)) or "command line"
        lines = [f"  {describe(problem)}" for problem in error.errors()]
        raise ConfigError(f"{where}: {len(lines)} mistake(s)\n" + "\n".join(lines)) from None


def extends_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[Path]:
    """The files to merge, base first. Raises ConfigError for a missing or malformed file and for a cycle."""
    if path in seen:
        raise ConfigError(f"{path}: `extends` goes in a circle: {' -> '.join(map(str, [*seen, path]))}")
    try:
        base = tomllib.loads(path.read_text()).get("extends")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return [*extends_chain(path.parent / base, (*seen, path)), path] if isinstance(base, str) else [path]


def deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else in `over` replaces what `base` has."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def describe(problem: Any) -> str:
    """One pydantic error as `section.key: what was found and what would be right`."""
    *parents, name = problem["loc"]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(name), list(fields_at(parents)))}"
    if problem["type"] == "missing":
        return f"{key}: missing, and it has no default"
    hint = ""
    if problem["type"] == "list_type":
        hint = f": write [[{key}]]" if isinstance(problem["input"], dict) else f": write [{problem['input']!r}]"
    return f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}"


def fields_at(path: Sequence[str | int]) -> Sequence[str]:
    """Names of the keys that the table at `path` knows."""
    table: Any = JobConfig
    for part in path:
        if isinstance(part, str):
            table = table.model_fields[part].annotation
        if getattr(table, "__args__", None):
            table = table.__args__[0]
    return list(table.model_fields)
