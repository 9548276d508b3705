"""Sources get their shares at every row, through stages, in every lane, and across a resume."""

from fractions import Fraction

import numpy as np
import pytest
from cistron.datasets.lanes.mixer import Mixer, Mixture, RowWeights
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = 400


@st.composite
def schedules(draw: st.DrawFn) -> list[RowWeights]:
    """Up to three stages of up to six sources, some of which rest in some."""
    sources = draw(st.integers(1, 6))
    weights = st.lists(st.sampled_from([0.0, 0.001, 0.1, 1 / 3, 1.0, 2.0, 7.5]), min_size=sources, max_size=sources)
    begins = sorted(draw(st.sets(st.integers(1, ROWS), max_size=2)))
    return [(row, draw(weights.filter(any))) for row in [0, *begins]]


def _shares(stages: list[RowWeights], rows: int) -> list[list[Fraction]]:
    """Each source's exact share of the first 1, 2, ... rows, by adding up row after row."""
    share = [Fraction(0)] * len(stages[0][1])
    shares = []
    for row in range(rows):
        weights = [Fraction(str(weight)) for weight in [weights for first, weights in stages if first <= row][-1]]
        share = [before + weight / sum(weights) for before, weight in zip(share, weights, strict=True)]
        shares.append(share)
    return shares


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_every_prefix_is_within_a_row_of_its_shares(stages: list[RowWeights]) -> None:
    mixer = Mixer(stages, 8, 0)
    counts = [0] * len(stages[0][1])
    for shares in _shares(stages, ROWS):
        counts[mixer.next()[0]] += 1
        assert max(abs(share - count) for share, count in zip(shares, counts, strict=True)) < 1


def test_a_stage_takes_effect_at_its_row() -> None:
    mixer = Mixer([(0, (1.0, 0.0)), (10, (0.0, 1.0)), (20, (1.0, 1.0))], 4, 0)
    sources = [mixer.next()[0] for _ in range(40)]
    assert sources[:20] == [0] * 10 + [1] * 10
    assert sorted(sources[20:]) == [0] * 10 + [1] * 10


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [1.0, 2.0, 1.0, 4.0], [255.0, 1.0]])
@pytest.mark.parametrize("lanes", [16, 12])
def test_every_lane_draws_from_every_source(weights: list[float], lanes: int) -> None:
    rows = 40 * lanes * int(sum(weights))
    mixer = Mixer([(0, weights)], lanes, 0)
    drawn = np.zeros((len(weights), lanes))
    for _ in range(rows):
        drawn[mixer.next()] += 1
    share = drawn / drawn.sum(axis=1, keepdims=True) * lanes
    assert share.min() > 0.4, "some lanes of a source are left unread"
    assert np.ptp(drawn, axis=1).max() <= 4, "lanes of a source would wait for each other"


@given(st.integers(1, 3), st.sampled_from([4, 6, 12]), st.integers(0, 100))
def test_consecutive_rows_come_from_a_lane_of_each_rank(sources: int, lanes: int, seed: int) -> None:
    mixer = Mixer([(0, [1.0] * sources)], lanes, seed)
    drawn = [mixer.next()[1] for _ in range(3 * lanes)]
    for ranks in (ranks for ranks in range(1, lanes + 1) if lanes % ranks == 0):
        for first in range(0, 3 * lanes, ranks):
            assert sorted(lane % ranks for lane in drawn[first : first + ranks]) == list(range(ranks))


@given(schedules(), st.integers(0, ROWS))
@settings(max_examples=60, deadline=None)
def test_a_resumed_mixer_goes_on_identically(stages: list[RowWeights], row: int) -> None:
    straight = Mixer(stages, 8, 3)
    for _ in range(row):
        straight.next()
    resumed = Mixer(stages, 8, 3, straight.state())
    assert [resumed.next() for _ in range(50)] == [straight.next() for _ in range(50)]
    assert resumed.state() == straight.state()


def test_shares_are_counted_from_where_the_data_began() -> None:
    mixer = Mixer([(0, (1.0, 3.0)), (1000, (3.0, 1.0))], 4, 0, Mixture(996, 996))
    sources = [mixer.next()[0] for _ in range(8)]
    assert sources[:4].count(0) == 1
    assert sources[4:].count(0) == 3


def test_lanes_depend_on_the_seed() -> None:
    first, second = (Mixer([(0, (1.0, 1.0))], 8, seed) for seed in (0, 1))
    assert [first.next() for _ in range(200)] != [second.next() for _ in range(200)]
