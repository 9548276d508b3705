"""The memory of one device, estimated from shapes alone, at the moments of a step that can be its peak.

What lasts: parameters, gradients and optimizer state, divided among the ranks that share them. FSDP2 adds what it gathers: the
root group (both tables, the last norm) from the first forward on, and the block at work; on one rank too, as a cast copy. The
rest follows from what autograd keeps. Per token of a block, in bytes, w being the width of the compute type, D the model's
width, Q and K the widths of all query and of all key heads, F the hidden width, S the row's length:

| kept | for the gradient of | eager, CPU | eager, CUDA | compiled |
|---|---|---|---|---|
| inputs of both norms | the norms | 2·4·D | 2·w·D | 2·w·D |
| normalised inputs | the norms' weights | 2·4·D | | |
| outputs of both norms | wq, wk, wv; w1, w3 | 2·w·D | 2·w·D | 2·w·D |
| rotated q and k, v, output | attention | w·(2·Q + 2·K) | the same | the same |
| log-sum-exp | attention | 4·heads | the same | the same |
| output, laid out anew | wo | w·Q, not under varlen | the same | the same |
| the mask as numbers | dense attention | w·S | w·S | w·S |
| q and k before their norms | q_norm, k_norm | 8·(Q + K) | w·(Q + K) | w·(Q + K) |
| w1 x, silu of it, w3 x, their product | silu, product, w2 | w·4·F | w·4·F | w·3·F |

On a CPU, nn.RMSNorm is a handful of operators on float32 copies; CUDA has one kernel. Inductor computes silu again in the
backward pass and keeps the rest. Tensor parallelism divides all of it but the outputs of the norms, which are gathered along
the sequence for the matrices. Rotation keeps the cosines and sines alone, once for all blocks.

Not counted: the allocator's slack (some percent), workspaces of libraries and kernels, NCCL's buffers, the CUDA context.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..models.config import DecoderConfig
from ..models.masks import Executor
from .config import JobConfig
from .distributed import Layout
from .parallelize import DTYPES, global_batch_size

MASTER = 4  # bytes of a parameter at rest, of its gradient, and of each moment of AdamW
MOMENTS = 2
LOSS = 12  # bytes per logit: log-probabilities, the gradient of nll_loss and that of log_softmax, all float32


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
        """Bytes in all."""
        return sum(self.parts.values())


HOW = {
    "parameters": "float32, over the ranks that share them",
    "gradients": "float32, likewise; kept through the forward pass where micro-batches accumulate",
    "optimizer": "AdamW: two float32 moments, likewise",
    "gathered": "by FSDP2: the tables, one block at work, one on its way",
    "unreduced": "gradients of a block and of the tables on their way to their ranks",
    "activations": "what the backward pass of the blocks reads",
    "at work": "gradients of activations, and what checkpointing computes again, of one block",
    "loss": "logits and their gradients",
    "inputs": "rows, rotations, mask",
}


def estimate(config: JobConfig, decoder: DecoderConfig, layout: Layout, executor: Executor, device: str) -> list[Moment]:
    """The moments that can be the peak of a step after the first; the peak is the largest of them.

    Args:
        config: of the job.
        decoder: the model's shape.
        layout: the processes; all devices hold alike.
        executor: of attention.
        device: "cpu" or "cuda".
    """
    d, t = decoder, config.training
    shared, width = layout.shard * layout.tp, DTYPES[t.mixed_precision_param].itemsize
    tokens = tokens_per_rank(config, layout)
    accumulates = global_batch_size(config, layout) // layout.data_parallel > t.local_batch_size
    eager_cpu = device == "cpu" and not config.compile.enable

    tables = (1 if d.tie_embeddings else 2) * d.vocab_size * d.dim + d.dim
    block = (d.parameter_count() - tables) / d.n_layers
    lasting = {
        "parameters": MASTER * d.parameter_count() / shared,
        "optimizer": MOMENTS * MASTER * d.parameter_count() / shared,
    }
    gathered_tables, gathered_block = width * tables / layout.tp, width * block / layout.tp
    on_its_way = gathered_block if layout.shard > 1 else 0.0
    reduced_block = MASTER * block / layout.tp  # FSDP2 holds one block's gradients in the reduce type until the next block's

    whole = tokens * block_activations(d, layout.tp, width, executor, t.seq_len, eager_cpu, config.compile.enable)
    entrance = tokens * width * d.dim / layout.tp
    checkpointed = config.activation_checkpoint.mode == "full"
    kept = entrance if checkpointed else whole
    last_norm = tokens * d.dim * ((4 + 4 if eager_cpu else width) / layout.tp + width)
    # gradients of both inputs of the gate's product, of the block's output and of its feed-forward's
    at_work = tokens * width * 2 * (d.hidden_dim + d.dim) / layout.tp + (whole if checkpointed else 0.0)
    inputs = tokens * (8 + 8 + 4 + 4 + 4 * d.head_dim + (t.seq_len if executor == "sdpa" else 0))
    gradients = MASTER * d.parameter_count() / shared
    reduced_gradients = MASTER * block * (d.n_layers - 1) / shared  # while the first block is at work
    table = width * d.vocab_size * d.dim / layout.tp
    # The gradients of both tables beside what was gathered; where they are one, autograd adds them into a third. Or those
    # gradients copied into FSDP2's buffer, and then that buffer beside its sum over ranks.
    computed = gathered_tables, (3 if d.tie_embeddings else 2) * table + reduced_block
    reduced = 0.0, MASTER * tables / layout.tp + max(gathered_tables, MASTER * tables / shared)
    gathered_at_end, unreduced_at_end = max(computed, reduced, key=sum)

    def moment(name: str, **parts: float) -> Moment:
        return Moment(name, {key: {**lasting, "inputs": inputs, **parts}.get(key.replace(" ", "_"), 0.0) for key in HOW})

    return [
        moment(
            "the loss",
            gradients=gradients if accumulates else 0.0,
            gathered=gathered_tables,
            activations=d.n_layers * kept + last_norm,
            loss=loss_bytes(tokens, d.vocab_size),
        ),
        moment(
            "backward, last block",
            gradients=gradients if accumulates else 0.0,
            gathered=gathered_tables + gathered_block + on_its_way,
            unreduced=table + gathered_block,
            activations=d.n_layers * kept,
            at_work=at_work,
        ),
        moment(
            "backward, first block",
            gradients=gradients if accumulates else reduced_gradients,
            gathered=gathered_tables + gathered_block,
            unreduced=table + gathered_block + reduced_block,
            activations=kept,
            at_work=at_work,
        ),
        moment(
            "backward, tables",
            gradients=gradients if accumulates else gradients - MASTER * tables / shared,
            gathered=gathered_at_end,
            unreduced=unreduced_at_end,
        ),
    ]


def tokens_per_rank(config: JobConfig, layout: Layout) -> int:
    """Positions of one micro-batch that one rank holds, before tensor parallelism."""
    rows = min(config.training.local_batch_size, global_batch_size(config, layout) // layout.data_parallel)
    return rows * config.training.seq_len


def block_activations(
    d: DecoderConfig, tp: int, width: int, executor: Executor, seq_len: int, eager_cpu: bool, compiled: bool
) -> float:
    """Bytes per token that the backward pass of one block reads: the table above, on one of `tp` ranks."""
    queries, keys = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    norms = 2 * d.dim * (4 + 4 if eager_cpu else width)
    if d.qk_norm:
        norms += (queries + keys) * (4 + 4 if eager_cpu else width)
    relaid = 0 if executor == "varlen" else queries
    attention = width * (2 * queries + 2 * keys + relaid) + 4 * d.n_heads
    mask = width * seq_len if executor == "sdpa" else 0
    feed_forward = width * (3 if compiled else 4) * d.hidden_dim
    return (norms + attention + feed_forward) / tp + mask + 2 * width * d.dim


def loss_bytes(tokens: int, vocab_size: int) -> float:
    """Bytes that the loss takes beyond its result while the gradient of `tokens` positions' logits is computed at once."""
    return LOSS * tokens * vocab_size
