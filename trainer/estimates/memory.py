"""The memory of one device, estimated from shapes alone, at the moments of a step that can be its peak.

What lasts: parameters, gradients and optimizer state, divided among the ranks that share them, which differ in shard,
cp or tp. FSDP2 adds what it gathers: the embedding table while it is looked up, the block at work, from its forward on
the output; a tied table all along. On one rank these are cast copies, and each block's stays until its backward; in
float32 there are none. The rest follows from what autograd keeps. Per token of a block, in bytes, w being the width of
the compute type, D the model's width, Q and K the widths of all query and of all key heads, F the hidden width, S the
row's length:

| kept | for the gradient of | eager, CPU | eager, CUDA | compiled |
|---|---|---|---|---|
| inputs of both norms | the norms | 2·4·D | 2·w·D | 2·w·D |
| normalised inputs | the norms' weights | 2·4·D | | |
| outputs of both norms | wq, wk, wv; w1, w3 | 2·w·D | 2·w·D | 2·w·D |
| rotated q, output | attention | w·2·Q | the same | the same |
| rotated k, and v: gathered, so of the whole row | attention | w·2·K·cp | the same | the same |
| log-sum-exp | attention | 4·heads | the same | the same |
| the mask as numbers | dense attention | w·S | w·S | w·S |
| q and k before their norms | q_norm, k_norm | 8·(Q + K) | w·(Q + K) | w·(Q + K) |
| w1 x, silu of it, w3 x, their product | silu, product, w2 | w·4·F | w·4·F | w·3·F |

A position map has two of what attention keeps, or scores written out: `two_regions`.

On a CPU, nn.RMSNorm is a handful of operators on float32 copies; CUDA has one kernel. Inductor computes silu again in
the backward pass and keeps the rest. Tensor parallelism divides all of it but the outputs of the norms, which are
gathered along the sequence for the matrices; context parallelism divides the tokens. Rotation keeps the cosines and
sines alone, once for all blocks. Checkpointing keeps what `parallel/activation_checkpoint.py` says and has the table's
rest for the one block that is at work.

What is frozen has neither gradient nor moments, and blocks below everything that is trained keep nothing. Between
trained parts frozen matrices would keep less than the table says, which is not taken off.

Not counted: the allocator's slack (some percent), workspaces of libraries and kernels, NCCL's buffers, the CUDA
context; float8's copies of what one product multiplies; validation, which keeps nothing and is below the peak unless
its micro-batches are far larger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...models.config import DecoderConfig, Executor
from ...models.loss import chunk_length
from ..config import JobConfig
from ..parallel import needs_fsdp
from ..processes import DTYPES, Layout, global_batch_size
from .sizes import Sizes, sizes_of

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Moment:
    """A moment of a step.

    Attributes:
        name: what happens then.
        parts: bytes by what they hold; every moment has the same keys, those of `HOW`.
    """

    name: str
    parts: Mapping[str, float]

    @property
    def size(self) -> float:
        """Bytes of all parts together."""
        return sum(self.parts.values())


HOW = {
    "parameters": "of training.dtype, over the ranks that share them",
    "gradients": "of training.dtype, likewise; kept through the forward pass where micro-batches accumulate",
    "optimizer": "moments of optimizer.state_dtype, likewise: two a parameter, Muon's one a matrix of a block",
    "gathered": "by FSDP2: the output, one block at work, one on its way; all on one rank, where they are cast",
    "unreduced": "gradients of a block and of the tables on their way to their ranks",
    "activations": "what the backward pass of the blocks reads",
    "at work": "gradients of activations and what checkpointing computes again, of one block; the optimizer's copies",
    "loss": "a chunk of logits (training.loss_chunk_tokens), and the gradients for what they are the product of",
    "inputs": "rows, rotary_tables, mask",
}


@dataclass(frozen=True)
class JobOnDevice:
    """A job's sizes on one device.

    Attributes:
        config: of the job.
        decoder: the model's shape.
        layout: the processes; all devices hold alike.
        executor: of attention.
        device: "cpu" or "cuda".
    """

    config: JobConfig
    decoder: DecoderConfig
    layout: Layout
    executor: Executor
    device: str

    @property
    def width(self) -> int:
        """Bytes of an activation, and of a parameter as gathered."""
        return DTYPES[self.config.training.mixed_precision_param].itemsize

    @property
    def eager_cpu(self) -> bool:
        """Whether nn.RMSNorm is several operators."""
        return self.device == "cpu" and not self.config.compile.enable

    @property
    def mapped(self) -> bool:
        """Whether attention has two regions."""
        return self.decoder.attention.position_map != "none"

    @property
    def shards(self) -> int:
        """Ranks that FSDP2 shards over."""
        return self.layout.shard * self.layout.cp

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step on one rank."""
        return max(1, self.rows_per_step // self.config.training.local_batch_size)

    @property
    def rows_per_step(self) -> int:
        """Rows of one data-parallel rank."""
        return global_batch_size(self.config, self.layout) // self.layout.data_parallel

    @property
    def rows(self) -> int:
        """Rows of one micro-batch of one rank."""
        return min(self.config.training.local_batch_size, self.rows_per_step)

    @property
    def tokens(self) -> int:
        """Positions of one micro-batch that one rank holds, before tensor parallelism."""
        return self.rows * self.config.training.seq_len // self.layout.cp

    @property
    def batches_at_hand(self) -> int:
        """Micro-batches on the device: the prefetcher has one on its way, and holds the last until it is done with."""
        return 1 if self.device == "cpu" else min(self.micro_batches, 2) + 1

    @cached_property
    def sizes(self) -> Sizes:
        """Numbers of parameters, and of those that are trained."""
        return sizes_of(self.config, self.decoder)

    @property
    def outputs(self) -> int:
        """Numbers that the model gives for a position."""
        return self.decoder.head_outputs or self.decoder.vocab_size

    @property
    def output_columns(self) -> int:
        """Those of them that one rank computes: tensor parallelism divides a vocabulary, and no head."""
        return self.outputs // (1 if self.decoder.head_outputs else self.layout.tp)

    @property
    def loss_chunk(self) -> int:
        """Positions whose logits one rank has at once."""
        return chunk_length(self.tokens, self.output_columns, self.device, self.config.training.loss_chunk_tokens)

    @property
    def block(self) -> float:
        """Number of parameters of one block."""
        return self.sizes.blocks / self.decoder.n_layers

    @property
    def trained_block(self) -> float:
        """Trained parameters of an average block."""
        return self.sizes.trained_blocks / self.decoder.n_layers


def estimate(config: JobConfig, decoder: DecoderConfig, layout: Layout, executor: Executor, device: str) -> list[Moment]:
    """Return the moments that can be the peak of a step after the first; the peak is the largest of them.

    Args:
        config: of the job.
        decoder: the model's shape.
        layout: the processes; all devices hold alike.
        executor: of attention.
        device: "cpu" or "cuda".
    """
    job = JobOnDevice(config, decoder, layout, executor, device)
    d, t, width, tokens, tp, sizes = decoder, config.training, job.width, job.tokens, layout.tp, job.sizes
    shared = job.shards * tp
    at_rest, reduced = DTYPES[t.dtype].itemsize, DTYPES[t.mixed_precision_reduce].itemsize
    accumulates = job.micro_batches > 1

    lasting = {
        "parameters": at_rest * sizes.all / shared,
        "optimizer": optimizer_bytes(config, sizes) / shared,
        "inputs": inputs(job),
    }
    gradients = at_rest * sizes.trained / shared
    # replicas sum their gradients in the last micro-batch: until then each holds its own, of the type they travel in
    accumulated = (reduced if layout.replicate > 1 else at_rest) * sizes.trained / shared
    # an embedding table of its own is a group of its own, which only its lookup has whole; a tied one is the end's
    apart = d.vocab_size * d.dim if d.output_parameters() else 0
    trained_apart = apart if sizes.trained_tables >= sizes.trained_output + apart else 0
    trained_end = sizes.trained_tables - trained_apart
    of_table, of_output, of_block = (width * size / tp for size in (trained_apart, sizes.trained_output, job.trained_block))
    copies = needs_fsdp(config, layout)
    end, block = (copies * width * size / tp for size in (sizes.tables - apart, job.block))
    on_its_way = block if job.shards > 1 else 0.0
    policy = config.parallelism.fsdp_reshard_after_forward
    all_blocks = d.n_layers * block if policy == "never" or (policy == "default" and job.shards == 1) else 0.0
    reduced_block = copies * reduced * job.trained_block / tp  # FSDP2 holds those of a block until the next block's

    kept, again_last, again_first = checkpointed(job)
    kept = [size * (index >= sizes.first) for index, size in enumerate(kept)]
    # never compiled
    last_norm = tokens * d.dim * ((FLOAT32 + FLOAT32 if device == "cpu" else width) / tp + width)
    # gradients of both inputs of the gate's product, of the block's output and of its feed-forward's
    gradient_flow = tokens * width * 2 * (d.hidden_dim + d.dim) / tp
    of_weight, of_hidden = FLOAT32 * sizes.trained_output / tp, tokens * width * d.dim
    # The gradient of a table beside what was gathered; where it is tied, autograd adds two into a third. Or that
    # gradient copied into FSDP2's buffer, and then that buffer beside its sum over ranks.
    held = end if not apart else 0.0
    last = trained_apart if apart else trained_end
    computed = held, (of_table if apart else 3 * of_output) + reduced_block
    summed = 0.0, copies * (reduced * last / tp + max(width * last / tp, reduced * last / shared))
    gathered_at_end, unreduced_at_end = max(computed, summed, key=sum)
    # the end's own gradient leaves at once where nothing of it is tied: its buffer lasts until the last block's
    leaving = copies * reduced * trained_end / tp if apart else of_output
    left = at_rest * trained_end / shared if apart else 0.0

    def moment(name: str, **parts: float) -> Moment:
        parts = {"gradients": accumulated if accumulates else 0.0, **lasting, **parts}
        return Moment(name, {key: parts.get(key.replace(" ", "_"), 0.0) for key in HOW})

    return [
        moment(
            "the loss",
            gathered=end + all_blocks,
            activations=sum(kept) + last_norm,
            loss=of_weight + of_hidden + chunk_of_logits(job),
        ),
        moment(
            "backward, output",
            gathered=end + (all_blocks or on_its_way),
            unreduced=of_output,
            activations=sum(kept) + last_norm,
            loss=of_weight + 2 * of_hidden,
        ),
        moment(
            "backward, output's gradient",
            gathered=(0.0 if apart else end) + (all_blocks or on_its_way),
            unreduced=of_output + (leaving if apart else 0.0),
            activations=sum(kept),
            loss=of_hidden,
        ),
        moment(
            "backward, last block",
            gradients=accumulated if accumulates else left,
            gathered=held + (all_blocks or block + on_its_way),
            unreduced=leaving + of_block,
            activations=sum(kept),
            at_work=gradient_flow + again_last,
        ),
        moment(
            "backward, first block",
            gradients=accumulated if accumulates else left + at_rest * job.trained_block * (d.n_layers - 1) / shared,
            gathered=held + block,
            unreduced=(0.0 if apart else of_output) + of_block + reduced_block,
            activations=kept[0],
            at_work=gradient_flow + again_first,
        ),
        moment(
            "backward, tables",
            gradients=accumulated if accumulates else gradients - at_rest * last / shared,
            gathered=gathered_at_end,
            unreduced=unreduced_at_end,
        ),
        moment("the step", gradients=gradients, at_work=optimizer_copies(job, shared)),
    ]


def peak_of(moments: Sequence[Moment]) -> Moment:
    """Return the moment that holds the most."""
    return max(moments, key=lambda moment: moment.size)


def checkpoint_bytes(config: JobConfig, decoder: DecoderConfig) -> int:
    """Return the bytes of a checkpoint's tensors, of which each rank that writes any writes about as many."""
    sizes = sizes_of(config, decoder)
    return DTYPES[config.training.dtype].itemsize * sizes.all + optimizer_bytes(config, sizes)


def optimizer_bytes(config: JobConfig, sizes: Sizes) -> int:
    """Return the bytes of the optimizer's state over all ranks."""
    moments = 2 * sizes.trained_tables + (1 if config.optimizer.name == "Muon" else 2) * sizes.trained_blocks
    return moments * DTYPES[config.optimizer.state_dtype].itemsize


def inputs(job: JobOnDevice) -> float:
    """Return the bytes of micro-batches on the device, mask included, and of the rotary tables of one."""
    seq_len = job.config.training.seq_len
    mask = {"sdpa": seq_len, "flex": 16 * seq_len / 128**2, "varlen": 0.0}[job.executor]  # four int32 tables of block pairs
    mask, rotary_tables = (2 * mask, 3) if job.mapped else (mask, 1)  # far queries and far keys have rotary_tables of their own
    return job.tokens * (job.batches_at_hand * (8 + 8 + 4 + 4 + 4 + mask) + rotary_tables * FLOAT32 * job.decoder.head_dim)


def checkpointed(job: JobOnDevice) -> tuple[list[float], float, float]:
    """Return the bytes that each block keeps between the passes, and what the last and the first compute again."""
    a, d, layers = job.config.activation_checkpoint, job.decoder, job.decoder.n_layers
    whole = job.tokens * block_activations(job)
    entrance = job.tokens * job.width * d.dim / job.layout.tp
    if a.mode == "none":
        return [whole] * layers, 0.0, 0.0
    if a.by_operator:
        products, attention = products_and_attention(job)
        kept = entrance + job.tokens * (products + attention)
        return [kept] * layers, whole - job.tokens * attention, whole - job.tokens * attention
    if a.mode == "memory_budget":  # the partitioner fills the budget as well as it can
        kept = entrance + a.memory_budget * (whole - entrance)
        return [kept] * layers, whole - kept, whole - kept
    every = a.selective_ac_option if isinstance(a.selective_ac_option, int) else 1
    by_block = [whole if index % every else entrance for index in range(layers)]
    return by_block, 0.0 if (layers - 1) % every else whole, whole


def block_activations(job: JobOnDevice) -> float:
    """Return the bytes per token that the backward pass of one block reads: the table at the head of the file."""
    d, width = job.decoder, job.width
    queries, keys = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    per_norm = FLOAT32 + FLOAT32 if job.eager_cpu else width
    norms = 2 * d.dim * per_norm + ((queries + keys) * per_norm if d.qk_norm else 0)
    attention: float = width * (2 * queries + 2 * keys * job.layout.cp) + FLOAT32 * d.n_heads
    mask: float = width * job.config.training.seq_len if job.executor == "sdpa" else 0
    if job.mapped:
        attention, mask = two_regions(job)
    feed_forward = width * (3 if job.config.compile.enable else 4) * d.hidden_dim
    return (norms + attention + feed_forward) / job.layout.tp + mask + 2 * width * d.dim


def two_regions(job: JobOnDevice) -> tuple[float, float]:
    """Return bytes per token that attention keeps for a position map; second: those that tensor parallelism repeats."""
    d, width, seq_len = job.decoder, job.width, job.config.training.seq_len
    queries, keys = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    if job.executor == "flex":  # two passes, and their outputs in float32 to be joined
        passes = 2 * (width * (2 * queries + keys) + FLOAT32 * (d.n_heads + queries))
        return passes + width * (keys + queries) + FLOAT32 * d.n_heads, 0.0
    # scores written out: of float32 queries and keys, weights in both types, and which pairs have none
    weights = d.n_heads * seq_len * (FLOAT32 + (width if width < FLOAT32 else 0))
    return 2 * FLOAT32 * (queries + keys) + width * (keys + 2 * queries) + weights, seq_len


def products_and_attention(job: JobOnDevice) -> tuple[float, float]:
    """Return the bytes per token that checkpointing by operator keeps: not in `block_activations`, and in it."""
    d, tp, width = job.decoder, job.layout.tp, job.width
    wk, w3 = width * d.n_kv_heads * d.head_dim / tp, width * d.hidden_dim / tp
    wo = width * d.dim * (1 if tp == 1 else 1 + 2 / tp)  # whole sums of a rank, and the scattered ones of wo and w2
    attention = (width * d.n_heads * d.head_dim + FLOAT32 * d.n_heads) / tp
    return wk + wo, attention + w3


def chunk_of_logits(job: JobOnDevice) -> float:
    """Return the bytes at the peak of a chunk of `models.loss`, beyond the gradients that it adds to."""
    d, width, compiled = job.decoder, job.width, job.config.compile.enable
    logits = job.output_columns * job.loss_chunk
    # as float32 where that is another type, and their exponentials; compiled, two versions of their gradients
    beside = 2 * width if compiled else FLOAT32 + (FLOAT32 if width < FLOAT32 else 0)
    at_once = logits * (width + beside)
    # a CPU has no product of bfloat16 that adds to float32
    product = width * job.outputs * d.dim / job.layout.tp if job.device == "cpu" and width < FLOAT32 else 0.0
    return max(at_once, 2 * width * logits + product)


def optimizer_copies(job: JobOnDevice, shared: int) -> float:
    """Return the bytes that the optimizer's arithmetic takes for a while beside what it reads and writes."""
    d, o = job.decoder, job.config.optimizer
    at_rest, state = DTYPES[job.config.training.dtype].itemsize, DTYPES[o.state_dtype].itemsize
    largest = job.sizes.largest / shared
    adamw = 0.0  # fused, in place
    if not at_rest == state == FLOAT32:  # parameter and both moments as float32, and the gradient or, later, one's noise
        adamw = FLOAT32 * largest * ((at_rest < FLOAT32) + 2 * (state < FLOAT32) + 1)
    if o.name != "Muon":
        return adamw
    sides = sorted((d.dim, d.hidden_dim))
    matrix, gram = sides[0] * sides[1], sides[0] ** 2
    # bfloat16: the matrix, of norm 1 and iterated, three products of its gram; on several ranks sent, received, put
    # together
    whole = 2 * (3 if shared == 1 else 6) * matrix + 2 * 3 * gram
    return max(adamw, whole + FLOAT32 * matrix / shared)
