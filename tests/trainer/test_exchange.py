"""Loaders ask each other through a store; nobody waits for a rank that reads no further, or for ever for a dead one."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cistron.datasets.loading import RanksLeft
from cistron.trainer.exchange import StoreExchange
from torch.distributed import DistStoreError, HashStore


def _exchanges(ranks: int, timeout: float = 60.0) -> list[StoreExchange]:
    store = HashStore()
    return [StoreExchange(rank, ranks, timeout, store) for rank in range(ranks)]


def test_all_ranks_learn_the_greatest_of_each_value_and_leave_nothing_behind() -> None:
    exchanges = _exchanges(3)

    def ask(exchange: StoreExchange) -> list[list[int]]:
        return [exchange([turn * exchange.rank, -exchange.rank]) for turn in range(20)]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(ask, exchanges))
    assert found == [[[2 * turn, 0] for turn in range(20)]] * 3
    assert exchanges[0].store.num_keys() <= 2


def test_a_rank_that_leaves_ends_the_exchanges_that_it_has_not_made_and_no_others() -> None:
    exchanges = _exchanges(3)

    def ask(exchange: StoreExchange) -> int:
        made = 0
        try:
            for made in range(9):
                if exchange.rank == 2 and made == 4:
                    exchange.leave()  # well before the others are as far
                    return made
                if exchange.rank == 1:
                    time.sleep(0.01)
                exchange([1])
        except RanksLeft:
            return made
        raise AssertionError("an exchange without a rank")

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, exchanges)) == [4, 4, 4]


def test_a_rank_that_does_not_answer_is_named_to_who_waits_for_rows() -> None:
    first, second, _ = _exchanges(3, timeout=0.05)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(exchange, [1]) for exchange in (first, second)]
        interrupted = first.watch(lambda: False)
        assert not interrupted()
        time.sleep(0.5)
        with pytest.raises(DistStoreError, match=r"the data of rank 2 did not answer in 0\.05 s"):
            interrupted()
        first.leave()
        second.leave()
        for each in asked:
            with pytest.raises(RanksLeft):
                each.result(10)
