"""What a training step costs on paper: FLOPs, bytes, launches and communication of a job, and the tokens/s they allow.

    python benchmarks/roofline.py                                          the table of docs/performance.md
    python benchmarks/roofline.py --config llama3_1b --gpus 1 --tflops 700 --bandwidth 4.3     at measured rates

A step is what `trainer/train.py` does, per GPU and micro-batch. Products and attention run at rates of their own;
everything else moves bytes. Nothing overlaps but communication, which is hidden as far as it is shorter than the rest.

- products: 2 FLOPs per parameter of a matrix and token forward, 4 backward, and what checkpointing computes again
- attention: pairs of a document of `--document` tokens; per pair and head dimension 4 FLOPs forward and 10 backward,
  where the kernel computes the scores again
- elementwise: bytes that compiled code moves between products, see `elementwise_bytes`
- loss head: three products; the bytes of logits, and of the float32 weight gradient once per chunk
- optimizer: bytes per parameter and step: 28 for AdamW (weight, gradient and two moments read, all but the gradient
  written), 12 for the norm and the clipping, 4 for zeroing; per micro-batch 6 for FSDP2's cast
- launches: 41 per layer, as the dry run on a pretended H200 counted; the host needs 5 us for each, beside the device
- communication: as `docs/scaling.md` has it, what FSDP2 gathers twice and scatters once per micro-batch
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from cistron.models.config import DecoderConfig
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.estimates import document_flops, row_flops, sizes_of
from cistron.trainer.processes import Layout, global_batch_size
from cistron.trainer.start import verify

CONFIGS = {  # shipped job: GPUs that it is meant for
    "llama3_1b": 1,
    "protein_650m": 1,
    "dna_1b": 1,
    "protein_3b": 8,
    "dna_7b": 8,
    "llama3_8b": 8,
    "qwen3_8b": 8,
}
LAUNCHES = 41  # per layer and micro-batch, forward and backward, flex, compiled
SECONDS_PER_LAUNCH = 5e-6
CHUNK = 2**28  # logits at once in the loss head


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes:
        products: FLOP/s of bfloat16 matrix products.
        forward: FLOP/s of attention, by the pairs that the mask leaves.
        backward: likewise.
        memory: bytes/s.
        links: bytes/s between GPUs, one direction.
    """

    products: float
    forward: float
    backward: float
    memory: float
    links: float


@dataclass(frozen=True)
class Work:
    """What one GPU does for a micro-batch; the optimizer's part is its share of a step.

    Attributes:
        tokens: of the micro-batch.
        model_flops: of a micro-batch by whole rows, as MFU counts them.
        document_flops: by the pairs that the mask leaves.
        products: FLOPs of the blocks' matrix products, those of checkpointing included.
        head: FLOPs of the output projection.
        attention: FLOPs forward, those of checkpointing included.
        attention_backward: FLOPs backward.
        elementwise: bytes.
        head_bytes: bytes beside the head's products.
        optimizer: bytes.
        launches: kernels.
        sent: bytes over the links.
    """

    tokens: int
    model_flops: float
    document_flops: float
    products: float
    head: float
    attention: float
    attention_backward: float
    elementwise: float
    head_bytes: float
    optimizer: float
    launches: int
    sent: float

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Return the time of every part."""
        return {
            "products": self.products / rates.products,
            "attention": self.attention / rates.forward + self.attention_backward / rates.backward,
            "elementwise": self.elementwise / rates.memory,
            "loss head": self.head / rates.products + self.head_bytes / rates.memory,
            "optimizer": self.optimizer / rates.memory,
        }

    def total(self, rates: Rates) -> float:
        """Return the seconds of a micro-batch: the device's, the host's or the links', whichever takes longest."""
        device = sum(self.seconds(rates).values())
        return max(device, self.launches * SECONDS_PER_LAUNCH, self.sent / rates.links)


def recomputed(config: JobConfig, decoder: DecoderConfig) -> tuple[float, float]:
    """Return the shares of a block's products and of its attention that the backward pass computes again."""
    a, d = config.activation_checkpoint, decoder
    queries, keys, feed_forward = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim, d.dim * d.hidden_dim
    wq, wk, wv, wo, w1, w3 = d.dim * queries, d.dim * keys, d.dim * keys, queries * d.dim, feed_forward, feed_forward
    matrices = wq + wk + wv + wo + 3 * feed_forward
    if a.mode == "selective" and a.by_operator:  # attention and every second product are kept
        return (wq + wv + w1) / matrices, 0.0
    if a.mode in ("full", "selective"):  # all of a block but w2, whose output no backward pass reads
        share = -(-d.n_layers // (int(a.selective_ac_option) if a.mode == "selective" else 1)) / d.n_layers
        return share * (wq + wk + wv + wo + w1 + w3) / matrices, share
    return 0.0, 0.0  # memory_budget: the compiler's choice is not known here


def elementwise_bytes(decoder: DecoderConfig, again: float) -> float:
    """Return bytes per token and layer that compiled code moves between products, in bfloat16.

    In units of 2 bytes: both norms read their input, write a normalised one and, backward, read input and gradient and
    write one (2 x 5 D); both residual sums (2 x 3 D); rotation reads and writes queries and keys, forward and backward
    (4 (Q + K)), a transposed copy of the output each way (4 Q); silu and product read two and write one, backward read
    three and write three (9 F). Of what is computed again the forward part counts twice.
    """
    d = decoder
    queries, keys = d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim
    forward = 2 * 2 * d.dim + 2 * 3 * d.dim + 2 * (queries + keys) + 2 * queries + 3 * d.hidden_dim
    backward = 2 * 3 * d.dim + 2 * (queries + keys) + 2 * queries + 6 * d.hidden_dim
    norms = 5 * (queries + keys) if d.qk_norm else 0
    return 2.0 * (forward * (1 + again) + backward + norms)


def work_of(config: JobConfig, gpus: int, document: int | None = None) -> Work:
    """Return what one of so many GPUs does for a micro-batch.

    Args:
        config: of the job.
        gpus: all of them share the parameters, unless the job names other degrees.
        document: tokens of each document; None: a row is one document, which is the most that attention can cost.
    """
    layout = Layout.resolve(config, gpus)
    _, decoder = verify(config, layout)
    d, sizes = decoder, sizes_of(config, decoder)
    rows_per_rank = global_batch_size(config, layout) // layout.data_parallel
    rows = min(config.training.local_batch_size, rows_per_rank)
    micro_batches = max(1, rows_per_rank // rows)
    tokens, seq_len = rows * config.training.seq_len, config.training.seq_len
    document = min(document or seq_len, seq_len)
    causal_pairs = tokens * (document + 1) // 2
    pairs = causal_pairs if d.causal else 2 * causal_pairs - tokens

    matrices = sizes.blocks - norm_parameters(d)
    again, attention_again = recomputed(config, d)
    outputs = d.vocab_size * d.dim
    per_pair = d.n_layers * d.n_heads * d.head_dim
    chunks = -(-tokens * d.vocab_size // CHUNK)
    # logits written, read for their statistics and their gradient, which is written and read by two products
    logits = 2 * tokens * d.vocab_size * 6
    shared = layout.shard * layout.cp * layout.tp
    return Work(
        tokens=tokens,
        model_flops=row_flops(d, seq_len, tokens),
        document_flops=document_flops(d, tokens, causal_pairs),
        products=(6 + 2 * again) * matrices * tokens,
        head=6 * outputs * tokens,
        attention=4 * (1 + attention_again) * per_pair * pairs,
        attention_backward=10 * per_pair * pairs,
        elementwise=elementwise_bytes(d, 1.0 if again else 0.0) * d.n_layers * tokens,
        head_bytes=logits + chunks * 8 * outputs,
        optimizer=(28 + 12 + 4) * sizes.all / shared / micro_batches + 6 * sizes.all / shared,
        launches=LAUNCHES * d.n_layers,
        sent=0.0 if shared == 1 else (2 + 2 + 4) * sizes.all * (1 - 1 / shared),
    )


def norm_parameters(decoder: DecoderConfig) -> int:
    """Return the parameters of the blocks that are no matrices."""
    d = decoder
    return d.n_layers * (2 * d.dim + (2 * d.head_dim if d.qk_norm else 0))


def load(name: str, executor: str = "auto") -> JobConfig:
    """Return a shipped job by its name, or one by its path."""
    path = Path(name) if name.endswith(".toml") else Path(__file__).resolve().parents[1] / "train_configs" / f"{name}.toml"
    return load_config(["--config", str(path), "--model.attention.executor", executor])[0]


def report(configs: dict[str, int], rates: Rates, peak: float, document: int | None) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| config, GPUs | TFLOP a micro-batch: products, attention, head | again | GB: elementwise, head, optimizer | "
        "ms: products, attention, elementwise, head, optimizer | launches (host ms) | GB sent (ms) | tokens/s a GPU on paper "
        "| MFU on paper | of the matmul rate | measured tokens/s | lies between |",
        "|---|---|---:|---|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for name, gpus in configs.items():
        config = load(name)
        w = work_of(config, gpus, document)
        total = w.total(rates)
        ms = ", ".join(f"{1e3 * s:.1f}" for s in w.seconds(rates).values())
        without = 6 * w.products / (6 + 2 * recomputed(config, decoder_of(config, gpus))[0])
        lines.append(
            f"| {name}, {gpus} "
            f"| {w.products / 1e12:.0f}, {(w.attention + w.attention_backward) / 1e12:.0f}, {w.head / 1e12:.1f} "
            f"| {w.products / without - 1:.0%} | {w.elementwise / 1e9:.0f}, {w.head_bytes / 1e9:.0f}, {w.optimizer / 1e9:.0f} "
            f"| {ms} | {w.launches:,} ({w.launches * SECONDS_PER_LAUNCH * 1e3:.0f}) | {w.sent / 1e9:.0f} "
            f"({w.sent / rates.links * 1e3:.0f}) | {w.tokens / total:,.0f} | {w.model_flops / total / peak:.0%} "
            f"| {w.model_flops / total / rates.products:.0%} | | |"
        )
    return lines


def decoder_of(config: JobConfig, gpus: int) -> DecoderConfig:
    """Return the model's shape."""
    return verify(config, Layout.resolve(config, gpus))[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", help="shipped jobs by name, or paths (default: those of docs/performance.md)")
    parser.add_argument("--gpus", type=int, help="processes (default: what the shipped job is meant for, else 1)")
    parser.add_argument("--document", type=int, help="tokens of a document (default: one fills a row)")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s that MFU is a share of (default: 989)")
    parser.add_argument("--tflops", type=float, default=791, help="products, TFLOP/s (default: 791, 80 %% of 989)")
    parser.add_argument("--forward", type=float, default=433, help="attention forward, TFLOP/s (default: 433)")
    parser.add_argument("--backward", type=float, default=356, help="attention backward, TFLOP/s (default: 356)")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="memory, TB/s (default: 4.8)")
    parser.add_argument("--links", type=float, default=450, help="between GPUs, GB/s in one direction (default: 450)")
    options = parser.parse_args()
    rates = Rates(
        options.tflops * 1e12, options.forward * 1e12, options.backward * 1e12, options.bandwidth * 1e12, options.links * 1e9
    )
    names = options.config or list(CONFIGS)
    configs = {name: options.gpus or CONFIGS.get(name, 1) for name in names}
    print("\n".join(report(configs, rates, options.peak * 1e12, options.document)))


if __name__ == "__main__":
    main()
