"""The helper that runs a test on several ranks must not hide what happens there."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from cistron.tests.helpers.ranks import run_on_ranks


def _sum_of_ranks(offset: int) -> int:
    total = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(total)
    if offset < 0:
        raise ValueError(f"rank {dist.get_rank()} refuses {offset}")
    return int(total) * 10 + dist.get_rank()


def test_results_come_back_by_rank() -> None:
    assert run_on_ranks(_sum_of_ranks, 2, 1) == [30, 31]


def test_a_failure_is_raised_with_the_traceback_of_its_rank() -> None:
    with pytest.raises(Exception, match=r"(?s)in _sum_of_ranks.*refuses -1"):
        run_on_ranks(_sum_of_ranks, 2, -1)
