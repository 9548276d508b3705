"""Time to build a FlexAttention block mask of packed documents: block granularity against `create_block_mask`.

Both are called alternately on the same rows, so that a busy machine slows both. Numbers are medians over the repeats.
The two masks are compared in every table before a time is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from cistron.models.attention import document_block_mask
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

TABLES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_indices", "full_q_indices")


def packed_ids(batch: int, seq_len: int, mean_length: float, device: str) -> Tensor:
    """Sequence ids int32 [batch, seq_len] of documents with lognormal lengths, sigma 1, the row filled to its end."""
    rows = []
    for _ in range(batch):
        lengths = torch.empty(seq_len).log_normal_(mean=torch.tensor(mean_length).log().item() - 0.5, std=1.0)
        ends = lengths.ceil().long().cumsum(0)
        rows.append(torch.searchsorted(ends, torch.arange(seq_len), right=True))
    return torch.stack(rows).int().to(device)


def by_pairs(ids: Tensor, compiled: bool) -> BlockMask:
    """The mask as FlexAttention's own builder makes it: the rule at every pair of tokens, then reduced to blocks."""

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (ids[b, q] == ids[b, k]) & (q >= k)

    builder = torch.compile(create_block_mask) if compiled else create_block_mask
    return builder(rule, ids.shape[0], None, ids.shape[1], ids.shape[1], device=ids.device)


def seconds(build: Callable[[], BlockMask], device: str) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    build()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per row length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[2048, 8192, 32_768], help="row lengths, in tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows per mask")
    parser.add_argument("--mean-length", type=float, default=870.0, help="mean document length, in tokens")
    parser.add_argument("--repeats", type=int, default=7, help="measurements per builder and length")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the masks are built")
    parser.add_argument("--compile", action="store_true", help="put create_block_mask through torch.compile")
    args = parser.parse_args()
    torch.manual_seed(0)

    print(f"torch {torch.__version__}, python {platform.python_version()}, {args.device}, batch {args.batch}")
    print(f"{'seq_len':>8} {'create_block_mask':>18} {'document_block_mask':>20} {'ratio':>8}")
    for seq_len in args.seq_len:
        ids = packed_ids(args.batch, seq_len, args.mean_length, args.device)
        builders = (lambda ids=ids: by_pairs(ids, args.compile), lambda ids=ids: document_block_mask(ids, causal=True))
        theirs, ours = (build() for build in builders)  # also warms up
        assert all(torch.equal(getattr(theirs, table), getattr(ours, table)) for table in TABLES)
        del theirs, ours
        times = [[seconds(build, args.device) for build in builders] for _ in range(args.repeats)]
        slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{seq_len:>8} {slow * 1e3:>15.2f} ms {fast * 1e3:>17.3f} ms {slow / fast:>7.0f}x", flush=True)


if __name__ == "__main__":
    main()
