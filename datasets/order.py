"""Every random choice of the data path: a pure function of integers, the same on each machine and numpy.

Only the raw Philox stream is used, whose bits numpy guarantees; `Generator.permutation` may change between releases.
"""

import numpy as np
import numpy.typing as npt


def random_bits(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Return `count` uint64 that depend on the non-negative integers of `key` alone."""
    bits: npt.NDArray[np.uint64] = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return bits


def permutation(count: int, *key: int) -> list[int]:
    """Return 0..count-1 in an order that depends on `key` alone."""
    order: list[int] = np.argsort(random_bits(count, *key), kind="stable").tolist()
    return order
