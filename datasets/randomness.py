"""Every random choice of the data path: a pure function of integers, the same on each machine and numpy.

Only the raw Philox stream is used, whose bits numpy guarantees; `Generator.permutation` may change between releases.
"""

import numpy as np
import numpy.typing as npt


def random_bits(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Return `count` uint64 that depend on the non-negative integers of `key` alone."""
    bits: npt.NDArray[np.uint64] = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return bits


def uniform(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return float64 in [0, 1) of the shape of `bits`, of which the upper 53 are used."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *key: int) -> list[int]:
    """Return 0..count-1 in an order that depends on `key` alone."""
    order: list[int] = np.argsort(random_bits(count, *key), kind="stable").tolist()
    return order


def scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 of each value: every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Shuffle:
    """A permutation of 0..count-1 that is computed, not stored: any part of it costs its own length only.

    A Feistel network of six rounds on the smallest even number of bits that holds `count`, walked in circles until a
    value falls below it (J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): at most four
    values are drawn for one that is kept, on average. The round function is the finaliser of SplitMix64.
    """

    def __init__(self, count: int, *key: int) -> None:
        self._count = np.uint64(count)
        self._half = np.uint64(max((max(count, 2) - 1).bit_length() + 1, 2) // 2)
        self._mask = (np.uint64(1) << self._half) - np.uint64(1)
        self._keys = random_bits(6, *key)

    def __getitem__(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the values at `places`, int64 of the same shape."""
        values = self._encrypt(places.astype(np.uint64))
        while (outside := values >= self._count).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (scramble(right + key) & self._mask)
        return (left << self._half) | right
