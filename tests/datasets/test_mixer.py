"""Sources get their shares at every row, in every lane, and across a resume."""

import numpy as np
import pytest
from cistron.datasets.mixer import Mixer
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = st.lists(st.sampled_from([0.001, 0.1, 0.25, 1 / 3, 1.0, 2.0, 7.5]), min_size=1, max_size=6)


def _sources(weights: list[float], lanes: int, rows: int, seed: int = 0) -> np.ndarray:
    mixer = Mixer(weights, lanes, seed, 0, [0] * len(weights))
    return np.array([mixer.source(row) for row in range(rows)])


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(1, 9))
def test_every_prefix_is_within_three_rows_of_its_shares(weights: list[float], lanes: int) -> None:
    sources = _sources(weights, lanes, 500)
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, 501)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - shares).max() < 3
    assert np.abs(counts - shares)[lanes - 1 :: lanes].max() < 1, "whole rounds are within one"


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [1.0, 2.0, 1.0, 4.0], [255.0, 1.0]])
@pytest.mark.parametrize("lanes", [16, 12])
def test_every_lane_draws_from_every_source(weights: list[float], lanes: int) -> None:
    rows = 40 * lanes * int(sum(weights))
    sources = _sources(weights, lanes, rows).reshape(-1, lanes)
    for source, weight in enumerate(weights):
        share = (sources == source).mean(axis=0) * sum(weights) / weight
        assert share.min() > 0.4, "some lanes of a source are left unread"


@given(WEIGHTS, st.integers(1, 9), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_a_resumed_mixer_goes_on_identically(weights: list[float], lanes: int, row: int) -> None:
    straight = Mixer(weights, lanes, 3, 0, [0] * len(weights))
    counts = straight.counts(row)
    resumed = Mixer(weights, lanes, 3, row, counts)
    assert [resumed.source(i) for i in range(row, row + 50)] == [straight.source(i) for i in range(row, row + 50)]


def test_order_depends_on_the_seed() -> None:
    first, second = (_sources([1.0, 1.0], 8, 200, seed) for seed in (0, 1))
    assert (first != second).any()
