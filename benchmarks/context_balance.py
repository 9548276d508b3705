"""How evenly a document mask's work is spread over the ranks of context parallelism: contiguous, zigzag, and by work.

Rows are packed by best fit from documents of Pareto lengths. Contiguous gives each rank one stretch of the row; zigzag
cuts it into two stretches per rank and pairs the first with the last, which is even for one causal document that fills
the row; ours assigns blocks of 128 by their work. A number is the busiest rank's work over the mean, the average over
rows and the worst row: in unmasked query-key pairs, and in the 128 x 128 tiles of FlexAttention that hold any, which is
what its kernel computes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from cistron.datasets.rows import best_fit
from cistron.models.attention import document_block_mask
from cistron.trainer.parallel.context_parallel import FLEX_BLOCK, mask_work, order_by_rank
from torch import Tensor


def packed_rows(seq_len: int, rows: int, minimum: int, tail: float, seed: int) -> Tensor:
    """Sequence ids int32 [rows, seq_len] of a best-fit packing of Pareto lengths, at most 10^6 tokens."""
    draw = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < 4 * rows * seq_len:
        lengths += np.minimum(minimum * (1 - draw.random(256)) ** (-1 / tail), 1e6).astype(int).tolist()
    plan = best_fit(lengths, seq_len)
    ids = torch.full((rows, seq_len), -1, dtype=torch.int32)
    for row, chosen in enumerate(draw.permutation(len(plan))[:rows]):
        numbers = torch.repeat_interleave(torch.tensor([length for _, _, length in plan[chosen]]))
        ids[row, : len(numbers)] = numbers
    return ids


def zigzag(seq_len: int, degree: int) -> Tensor:
    """Positions int64 [seq_len] in the order of the ranks: stretch i and stretch 2 * degree - 1 - i for rank i."""
    stretches = torch.arange(seq_len).chunk(2 * degree)
    return torch.cat([stretch for i in range(degree) for stretch in (stretches[i], stretches[2 * degree - 1 - i])])


def imbalance(order: Tensor, ids: Tensor, causal: bool, degree: int) -> tuple[str, str]:
    """Busiest over mean, by pairs and by tiles, of an order int64 [rows, seq_len] of positions by rank."""
    rows = len(ids)
    pairs = mask_work(ids, causal, 1).gather(1, order).view(rows, degree, -1).sum(-1)
    mask = document_block_mask(ids, causal, FLEX_BLOCK, order, order)
    assert mask.full_kv_num_blocks is not None
    tiles = (mask.kv_num_blocks + mask.full_kv_num_blocks)[:, 0].view(rows, degree, -1).sum(-1)
    ratios = [work.amax(1) / work.double().mean(1) for work in (pairs, tiles)]
    return tuple(f"{ratio.mean():.3f} ({ratio.amax():.3f})" for ratio in ratios)  # type: ignore[return-value]


def main() -> None:
    """Print a table per kind of mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[8192, 32_768], help="row lengths, in tokens")
    parser.add_argument("--degree", type=int, nargs="+", default=[2, 4, 8], help="ranks of context parallelism")
    parser.add_argument("--rows", type=int, default=64, help="rows of each length")
    parser.add_argument("--minimum", type=int, default=100, help="shortest document")
    parser.add_argument("--tail", type=float, default=1.1, help="exponent of the Pareto distribution: smaller is heavier")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths")
    args = parser.parse_args()

    for causal in (True, False):
        print(f"\n{'causal' if causal else 'bidirectional'}: mean (worst) of {args.rows} rows\n")
        print("| row | ranks | contiguous: pairs | tiles | zigzag: pairs | tiles | ours: pairs | tiles | ms a row |")
        print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        for seq_len in args.seq_len:
            ids = packed_rows(seq_len, args.rows, args.minimum, args.tail, args.seed)
            for degree in args.degree:
                started = time.perf_counter()
                ours = order_by_rank(ids, causal, degree, FLEX_BLOCK)
                seconds = time.perf_counter() - started
                orders = (torch.arange(seq_len).expand_as(ours), zigzag(seq_len, degree).expand_as(ours), ours)
                cells = [cell for order in orders for cell in imbalance(order, ids, causal, degree)]
                print(f"| {seq_len:,} | {degree} | {' | '.join(cells)} | {seconds / args.rows * 1e3:.2f} |", flush=True)


if __name__ == "__main__":
    main()
