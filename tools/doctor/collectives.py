"""Part `collectives`: what ranks send each other arrives, how fast over each link, and which rank is slower.

Bandwidth is that of the bus, by nccl-tests: bytes per second times 2 (n - 1) / n of an all-reduce, (n - 1) / n of the
two others, so that it compares with a link's whatever the number of ranks. Pairs meet as in a tournament: n - 1 rounds,
in each of which every rank exchanges with one other.
"""

from collections.abc import Callable
from functools import partial
from statistics import median, median_low

import torch
import torch.distributed as dist

from .examination import Examination
from .rates import product

SLOWER = 1.25  # times the median, from which on a rank is named; repeats of one GPU differ by some percent
ROUNDS = 31  # of pairs: NCCL opens a connection for each


def examine(e: Examination) -> None:
    """Check and time collectives, time links, compare ranks."""
    n = e.world.layout.world_size
    if n == 1:
        e.find("collectives", "not here", compared_with="one process; start it by torchrun or srun")
        return
    slow_ranks(e)
    count = (2**26 if e.on_gpu else 2**20) // n * n  # float32
    whole = torch.full((count,), float(e.world.rank + 1), device=e.device)
    part = torch.empty(count // n, device=e.device)
    total = n * (n + 1) / 2

    def all_reduce() -> bool:
        out = whole.clone()
        dist.all_reduce(out)
        return bool((out == total).all())

    def all_gather() -> bool:
        out = torch.empty_like(whole)
        dist.all_gather_into_tensor(out, whole[: count // n])
        return bool((out.view(n, -1) == torch.arange(1, n + 1, device=e.device)[:, None]).all())

    def reduce_scatter() -> bool:
        dist.reduce_scatter_tensor(part, whole)
        return bool((part == total).all())

    buffer = whole.clone()
    timed(e, "all-reduce", all_reduce, lambda: dist.all_reduce(buffer), 2 * (n - 1) / n * count)
    timed(e, "all-gather", all_gather, lambda: dist.all_gather_into_tensor(buffer, part), (n - 1) / n * count)
    timed(e, "reduce-scatter", reduce_scatter, lambda: dist.reduce_scatter_tensor(part, buffer), (n - 1) / n * count)
    links(e, count // 4)


def timed(e: Examination, name: str, right: Callable[[], bool], run: Callable[[], object], numbers: float) -> None:
    """Check one collective on every rank, and add its bandwidth: of `numbers` float32 sent and received by a rank."""
    wrong = [rank for rank, fine in enumerate(e.world.gather(right())) if not fine]
    seconds = max(e.world.gather(e.seconds(run)))
    if wrong:
        e.find(name, "wrong", compared_with=f"integers summed and gathered exactly; not on ranks {wrong}")
    else:
        what = f"bus bandwidth over {e.world.layout.world_size} ranks; result exact"
        e.find(name, "ok", numbers * 4 / seconds / 1e9, "GB/s", what)


def links(e: Examination, count: int) -> None:
    """Time every pair of ranks; a pair below half of the median of its kind (one host, two hosts) is named."""
    n, me = e.world.layout.world_size, e.world.rank
    hosts = e.world.gather(e.host)
    mine: dict[int, float] = {}
    sent, got = torch.ones(count, device=e.device), torch.empty(count, device=e.device)

    def exchange(other: int) -> None:
        works = [dist.P2POp(dist.isend, sent, other), dist.P2POp(dist.irecv, got, other)]
        for work in dist.batch_isend_irecv(works):
            work.wait()

    for turn in range(min(n - 1 + n % 2, ROUNDS)):
        e.world.sum([0])  # all begin together
        other = opponent(me, turn, n)
        if other is not None:
            mine[other] = 8 * count / e.seconds(partial(exchange, other), repeats=3) / 1e9  # both directions
    rates = {(a, b): rate for a, rates in enumerate(e.world.gather(mine)) for b, rate in rates.items() if a < b}
    for kind, inside in (("within a host", True), ("between hosts", False)):
        some = {pair: rate for pair, rate in rates.items() if (hosts[pair[0]] == hosts[pair[1]]) == inside}
        if not some:
            continue
        middle = median(some.values())
        what = f"median of {len(some)} pair(s), both directions; slowest {min(some.values()):.3g}"
        e.find(f"links {kind}", "ok", middle, "GB/s", what)
        for (a, b), rate in some.items():
            if rate < middle / 2:
                ends = f"rank {a} ({hosts[a]}) and rank {b} ({hosts[b]})"
                e.find(f"link {ends}", "slow", rate, "GB/s", f"median {middle:.3g} of pairs {kind}")


def opponent(rank: int, turn: int, n: int) -> int | None:
    """Return whom a rank meets in a round of a tournament of n (the circle method); None: nobody."""
    size = n + n % 2  # with an odd number one rests
    last = size - 1
    if rank == last:
        other = turn * (size // 2) % last
    else:
        other = (turn - rank) % last
        if other == rank:
            other = last
    return other if other < n else None


def slow_ranks(e: Examination) -> None:
    """Name the ranks whose matrix products take longer than those of the others, on all ranks alike."""
    seconds = e.world.gather(e.seconds(product(e)))
    hosts = e.world.gather(e.host)
    middle = median_low(seconds)  # of two, the faster
    slow = {rank: time for rank, time in enumerate(seconds) if time > SLOWER * middle}
    if not slow:
        e.find("ranks alike", "ok", max(seconds) / middle, "x", f"the slowest over the median, {middle * 1e3:.3g} ms a product")
    for rank, time in slow.items():
        named = f"rank {rank} on {hosts[rank]}: slower than the others"
        e.find(named, "slow", time / middle, "x", f"{time * 1e3:.3g} ms a product, median {middle * 1e3:.3g} ms", rank=rank)
