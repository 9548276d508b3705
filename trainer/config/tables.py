"""The trainer's own tables of a TOML: one class each. The docstrings of the keys are the `--help` text."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator
from typing_extensions import override

from ...base import COUNT, TOKENS, Decay, Degree, Fraction, Name, NonNegative, PathText, Positive, Steps, Table, Tokens, changed
from ...datasets.readers import SourceFiles
from ...datasets.rows import OBJECTIVES
from .registries import OPTIMIZERS, SINKS


class Job(Table):
    """Where the run lives."""

    dump_folder: PathText = "outputs"
    """Folder of this run: metrics.jsonl, TensorBoard files, checkpoints, the resolved config."""
    description: str = ""
    """One line about the job, for people."""
    plugins: list[Name] = Field(default_factory=list)
    """Modules that add readers, presets, ... (docs/extending.md); those of installed packages need no entry here."""

    @field_validator("dump_folder")
    @classmethod
    def in_home(cls, folder: str) -> str:
        """A leading `~` stands for the home folder."""
        return str(Path(folder).expanduser())


class Training(Table):
    """The optimisation loop."""

    objective: Annotated[str, OBJECTIVES.choice] = "causal"
    """What a model learns to predict."""
    seq_len: Annotated[int, Field(ge=2, le=TOKENS)] = 2048
    """Tokens per row."""
    local_batch_size: Annotated[int, Field(gt=0, le=2**20)] = 8
    """Largest number of rows in one forward pass of one rank; more are accumulated."""
    global_batch_size: Annotated[int, Field(ge=-1, le=2**24)] = -1
    """Rows per optimizer step over all ranks; -1: local_batch_size x data-parallel ranks."""
    steps: Steps = 1000
    """Optimizer steps of the whole job."""
    max_norm: float = Field(default=1.0, gt=0.0, le=1e30)
    """Gradients are clipped to this global 2-norm."""
    max_nonfinite_steps: Positive = 10
    """End the run after so many steps in a row whose loss or gradient norm is not finite; none of them is taken."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides initial weights and the order of the data."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and gradients; bfloat16 saves 4 bytes a parameter, and updates are rounded stochastically."""
    mixed_precision_param: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of parameters and activations in forward and backward."""
    mixed_precision_reduce: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are summed over ranks."""
    loss_chunk_tokens: NonNegative = 0
    """Tokens whose logits are in memory at once; 0: 2^28 logits on CUDA, 2^23 on a CPU. More are faster on a GPU."""
    gc_freq: Positive = 50
    """Steps between runs of Python's garbage collector, which would otherwise stall ranks at different moments."""


class OptimizerConfig(Table):
    """AdamW, or Muon for the blocks' matrices. Weight decay applies to matrices, not to norms."""

    name: Annotated[str, OPTIMIZERS.choice] = "AdamW"
    """Which one; Muon's learning rate is AdamW's."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the moments; bfloat16 halves them, rounded stochastically."""
    lr: float = Field(default=8e-4, gt=0.0, le=1e3)
    """Peak learning rate."""
    beta1: Decay = 0.9
    """Decay of the first moment."""
    beta2: Decay = 0.95
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0.0, le=1.0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0.0, le=100.0)
    """Decoupled weight decay."""


class SkipStep(Table):
    """Spikes: steps whose loss or gradient norm is far above those before them. They are not taken; the run goes on."""

    enable: bool = False
    """Call off a step whose loss or gradient norm is above mean + sigma x standard deviation of the window's."""
    sigma: float = Field(default=6.0, gt=0.0, le=1e6)
    """Standard deviations above the mean that are allowed."""
    window: Annotated[int, Field(ge=20, le=2**20)] = 128
    """Steps whose losses and norms are compared with; nothing is called off before half of them, and 20, are there."""


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
    data_parallel_shard_degree: Annotated[int, Field(ge=-1, le=2**20)] = -1
    """Ranks that share one copy of parameters, gradients and optimizer state (FSDP2); -1: all that are left."""
    tensor_parallel_degree: Degree = 1
    """Ranks that split every matrix and, between the norms, the sequence."""
    context_parallel_degree: Degree = 1
    """Ranks that share the tokens of every row, assigned so that each computes as much of the document mask."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """Free gathered parameters after forward. default: of blocks, if sharded. always: the output's too. never: none."""
    enable_async_tensor_parallel: bool = False
    """Overlap tensor parallelism's communication with products; needs compile.enable and GPUs with symmetric memory."""


class Compile(Table):
    """torch.compile."""

    enable: bool = False
    """Compile every transformer block and the loss. No later step compiles again, whatever the documents."""


class ActivationCheckpoint(Table):
    """Activation checkpointing: what is kept for the backward pass, and what is computed again in it."""

    mode: Literal["none", "full", "selective", "memory_budget"] = "none"
    """none: keep all. full: the input of each block. selective: some. memory_budget: a share chosen by the compiler."""
    selective_ac_option: Literal["op"] | Positive = "op"
    """selective: op keeps attention, sums over ranks, every second matrix product; n is "full" for every n-th block."""
    memory_budget: Fraction = 0.5
    """memory_budget: share of activations kept; 0: the input of each block, 1: all that the backward pass reads."""

    @property
    def by_operator(self) -> bool:
        """Whether the choice is made by looking at single operators."""
        return self.mode == "selective" and self.selective_ac_option == "op"

    @override
    def complaints(self) -> list[str]:
        return [
            f'activation_checkpoint.{key} = {getattr(self, key)!r}: is of mode = "{mode}", but activation_checkpoint.mode is '
            f'"{self.mode}"'
            for key, mode in (("selective_ac_option", "selective"), ("memory_budget", "memory_budget"))
            if self.mode != mode and changed(self, key)
        ]


class Float8(Table):
    """Products of the blocks' linear layers in float8, by torchao (pip install 'cistron[float8]')."""

    enable: bool = False
    """Convert the linear layers; needs a GPU of compute capability 8.9 or later."""
    recipe_name: Literal["tensorwise", "rowwise"] = "tensorwise"
    """One scale for a whole tensor (fastest), or one per row (more accurate)."""
    filter_fqns: list[Name] = Field(default_factory=lambda: ["output"])
    """Layers whose name contains one of these stay as they are; "output", which is the loss's, must be among them."""
    emulate: bool = False
    """Round to float8 and multiply in the compute type, on any device: for tests, slow."""


class Lora(Table):
    """Low-rank adapters (Hu et al. 2021): they alone are trained, and `cistron export` merges them into the weights."""

    rank: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Inner width of the adapters; 0: none."""
    alpha: float = Field(default=16.0, gt=0.0, le=1e6)
    """What an adapter adds counts alpha / rank times."""
    targets: list[Name] = Field(default_factory=lambda: ["layers.*.attention.w?", "layers.*.feed_forward.w?"], min_length=1)
    """Globs over the names of the blocks' linear layers; those that match have an adapter."""


class FineTuning(Table):
    """What is trained of a model that has been trained before; checkpoint.initial_load_path says which."""

    freeze: list[Name] = Field(default_factory=list)
    """Globs over names of parameters or of modules ("layers.*", "tok_embeddings") that are not trained."""
    lora: Lora = Lora()
    """Low-rank adapters."""

    @override
    def complaints(self) -> list[str]:
        lines = []
        if self.lora.rank and self.freeze:
            lines.append(f"fine_tuning.freeze = {self.freeze}: adapters (lora.rank) freeze everything else; leave freeze out")
        lines += [
            f"fine_tuning.lora.{key} = {getattr(self.lora, key)!r}: there are no adapters, fine_tuning.lora.rank is 0"
            for key in ("alpha", "targets")
            if not self.lora.rank and changed(self.lora, key)
        ]
        return lines


class Checkpoint(Table):
    """What a run leaves behind to continue from."""

    enable: bool = True
    """Save and resume."""
    folder: PathText = "checkpoint"
    """Folder of the step-<N> inside job.dump_folder, or an absolute path or fsspec URL (s3://bucket/run)."""
    interval: Positive = 500
    """Steps between checkpoints; the last step is always saved."""
    async_mode: Literal["disabled", "async"] = "async"
    """async: copy to (pinned) host memory and write while training goes on. disabled: training waits for the disk."""
    keep_latest_k: NonNegative = 3
    """Newest checkpoints to keep; 0 keeps all."""
    keep_every_n: NonNegative = 0
    """Keep those of steps that are multiples of this for good; 0: none."""
    max_failures: Positive = 3
    """Saves in a row that may fail (a full disk) before the run ends; after each, the next interval tries again."""
    load_step: Annotated[int, Field(ge=-1, le=COUNT)] = -1
    """Step to resume from; -1: the newest good one, 0: none, start afresh."""
    initial_load_path: PathText | None = None
    """Checkpoint (…/step-N, a path or URL) or Hugging Face folder to start from; unused once this run has its own."""
    initial_load_model_only: bool = True
    """Take only the weights of initial_load_path; false: also its step, its optimizer and its place in the data."""

    @override
    def complaints(self) -> list[str]:
        lines = []
        if self.load_step > 0 and not self.enable:
            lines.append(f"checkpoint.load_step = {self.load_step}: nothing is loaded, checkpoint.enable is false")
        if not self.initial_load_model_only and self.initial_load_path is None:
            lines.append("checkpoint.initial_load_model_only = false: there is no checkpoint.initial_load_path")
        if self.last_save_in_hf and not self.enable:
            lines.append("checkpoint.last_save_in_hf = true: there is no last save, checkpoint.enable is false")
        if self.keep_every_n % self.interval:
            lines.append(
                f"checkpoint.keep_every_n = {self.keep_every_n}: must be a multiple of checkpoint.interval = {self.interval}, "
                "or checkpoints of those steps are not there to be kept"
            )
        return lines

    last_save_in_hf: bool = False
    """After the last step, export to <job.dump_folder>/huggingface/step-<N>, as `cistron export` does."""


class ValidationConfig(Table):
    """Loss on documents that training does not see."""

    enable: bool = False
    """Validate after step 1, every `freq` steps and after the last one."""
    freq: Positive = 500
    """Steps between validations."""
    steps: Annotated[int, Field(ge=-1, le=COUNT)] = -1
    """Read at most this many times training.global_batch_size rows; -1: every document once."""
    local_batch_size: Annotated[int, Field(gt=0, le=2**20)] | None = None
    """Rows in one forward pass of one rank; unset: as many as in training."""
    sources: list[SourceFiles] = Field(default_factory=list)
    """The [[validation.sources]] tables, as those of [[data.sources]] without weight and max_epochs."""

    @override
    def complaints(self) -> list[str]:
        names = [source.name for source in self.sources]
        lines = [f"validation.sources: names must differ, found {names}"] if len(set(names)) < len(names) else []
        if self.enable and not names:
            lines.append("validation.sources: no [[validation.sources]] table; name at least one source, or leave out enable")
        if self.steps == 0:
            lines.append("validation.steps = 0: must be -1 (every document once) or at least 1")
        return lines


class Metrics(Table):
    """What is reported."""

    log_freq: Positive = 10
    """Steps between console lines, metrics.jsonl records and TensorBoard points."""
    enable_tensorboard: bool = True
    """Write TensorBoard files to job.dump_folder/tensorboard."""
    enable_wandb: bool = False
    """Report to Weights & Biases as well (pip install 'cistron[wandb]'), which its WANDB_* variables steer."""
    sinks: list[Annotated[str, SINKS.choice]] = Field(default_factory=list)
    """Further metric sinks by name, most often a plug-in's (docs/extending.md)."""
    peak_flops: float | None = Field(default=None, gt=0.0, le=1e21)
    """Peak FLOP/s of one device, for MFU on devices Cistron does not know."""


class Profiling(Table):
    """What steps spend their time and memory on."""

    enable_profiling: bool = False
    """Record one step in every `profile_freq` with torch.profiler, on every rank."""
    profile_freq: Annotated[int, Field(ge=2, le=COUNT)] = 10
    """Steps from one recorded step or memory snapshot to the next, counted from the first step of a process."""
    save_traces_folder: PathText = "profile_traces"
    """Folder inside job.dump_folder; traces are step-<N>/rank<R>.json.gz in it, for Perfetto or chrome://tracing."""
    enable_memory_snapshot: bool = False
    """CUDA: record allocations, and write them every `profile_freq` steps and where memory runs out."""
    save_memory_snapshot_folder: PathText = "memory_snapshot"
    """Folder inside job.dump_folder; snapshots are step-<N>/rank<R>.pickle in it, for pytorch.org/memory_viz."""


WEEK = 7 * 24 * 3600  # a process that answers after a week is lost


class Comm(Table):
    """Process groups."""

    timeout_seconds: Annotated[int, Field(gt=0, le=WEEK)] = 600
    """A collective that takes longer ends the run instead of hanging."""
    trace_buf_size: Annotated[int, Field(ge=0, le=10**6)] = 0
    """NCCL: collectives that each rank's flight recorder remembers, and writes down when one times out; 0: none."""
    save_traces_folder: PathText = "comm_traces"
    """Folder inside job.dump_folder for what the flight recorder writes, a file rank_<R> per rank."""


Metric: TypeAlias = Literal["BLEU", "ROUGE"]
ONCE: Any = AfterValidator(lambda values: list(dict.fromkeys(values)))  # what is named twice is measured once
LENGTH = re.compile(r"([1-9]\d{0,7})(x?)")  # the command line has numbers as text too


class Passkey(Table):
    """A number that stands once in a long document, and is to be repeated at its end."""

    samples: Annotated[int, Field(ge=0, le=10**6)] = 10
    """Documents for each depth and length; 0: no pass keys."""
    digits: Annotated[int, Field(gt=0, le=1000)] = 5
    """Letters of a key."""
    depths: Annotated[list[Fraction], ONCE] = Field(default=[0.0, 0.25, 0.5, 0.75, 1.0], min_length=1)
    """Where the key stands: 0 at the document's beginning, 1 right before the query."""
    alphabet: Name | None = None
    """Letters that keys are drawn from; unset: 0123456789, and letters of the sequences for dna and protein."""
    needle: Name | None = None
    """Text that holds the key, as {key}; unset: a sentence, or for dna and protein a marker before the key."""
    query: Name | None = None
    """Text at the end, before the answer; unset: a question, or the marker."""

    @override
    def complaints(self) -> list[str]:
        lines = []
        if self.needle is not None and "{key}" not in self.needle:
            lines.append(f"eval.extrapolation.passkey.needle = {self.needle!r}: must contain {{key}}")
        if (self.needle is None) != (self.query is None):
            lines.append("eval.extrapolation.passkey: needle and query belong together; set both or neither")
        return lines


class Continuation(Table):
    """How near the most likely continuation of a long document comes to the real one."""

    samples: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Documents for each length; 0: none. Each token is a forward pass over the whole document."""
    tokens: Tokens = 32
    """Tokens of a continuation; the prompt is as many shorter than the length."""
    metrics: Annotated[list[Metric], ONCE] = Field(default=["BLEU", "ROUGE"], min_length=1)
    """BLEU by sacrebleu, ROUGE (the F-measures of ROUGE-1, -2, -L) by rouge-score: pip install 'cistron[eval]'."""


class Extrapolation(Table):
    """Loss and retrieval on documents longer than those of training, by every method that needs no training."""

    enable: bool = False
    """Evaluate in training too, every `freq` steps and after the last one, on [[validation.sources]]."""
    freq: Positive = 5000
    """Steps between evaluations in training."""
    lengths: list[Tokens | str] = Field(default=["1x", "2x", "4x", "8x"], min_length=1)
    """Tokens, or as "4x" multiples of model.rope.original_seq_len; unset there: of training.seq_len."""
    methods: Annotated[list[Name], ONCE] = Field(default_factory=list)
    """What to compare (docs/length_extrapolation.md); unset: all that the model allows."""
    score_last: Tokens = 64
    """Last tokens of the longest length, whose loss is taken again with less and less before them."""
    documents: Positive = 32
    """Documents of each length that are used, the first that are long enough; how many there are is said."""
    passkey: Passkey = Passkey()
    """Retrieval of a pass key."""
    continuation: Continuation = Continuation()
    """Quality of continuations."""

    def tokens(self, trained: int) -> list[int]:
        """The lengths in ascending order, for a model that was trained on rows of `trained` tokens."""
        matches = (LENGTH.fullmatch(str(length)) for length in self.lengths)
        return sorted({int(match[1]) * (trained if match[2] else 1) for match in matches if match})

    @override
    def complaints(self) -> list[str]:
        return [
            f"eval.extrapolation.lengths = {length!r}: must be a number of tokens up to {TOKENS}, "
            'or a multiple such as "4x" up to "1024x"'
            for length in self.lengths
            if not (match := LENGTH.fullmatch(str(length))) or int(match[1]) > (1024 if match[2] else TOKENS)
        ]


class Eval(Table):
    """Evaluations other than validation."""

    extrapolation: Extrapolation = Extrapolation()
    """Loss and retrieval on documents longer than those of training, by every method that needs no training."""
