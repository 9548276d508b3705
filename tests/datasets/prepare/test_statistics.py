"""What lengths say: counted exactly, whatever the arrays they come in, and packed as a loader packs."""

import numpy as np
import pytest
from cistron.datasets.prepare import length_statistics, statistics
from cistron.datasets.rows import best_fit
from hypothesis import given
from hypothesis import strategies as st

lengths_strategy = st.lists(st.integers(1, 5000), min_size=1, max_size=60)


@given(lengths_strategy, st.integers(2, 600), st.integers(1, 10))
def test_counts_are_those_of_the_lengths_in_whatever_arrays_they_come(lengths: list[int], seq_len: int, part: int) -> None:
    arrays = [np.array(lengths[at : at + part]) for at in range(0, len(lengths), part)]
    s = length_statistics(arrays, seq_len)
    long = [length for length in lengths if length > seq_len]
    assert (s.documents, s.tokens) == (len(lengths), sum(lengths))
    assert (s.shortest, s.longest) == (min(lengths), max(lengths))
    assert s.median == sorted(lengths)[(len(lengths) - 1) // 2]
    assert (s.split, s.fragments) == (len(long), sum(-(-length // seq_len) for length in long))
    assert sum(count for _, count in s.histogram) == len(lengths)
    for low, count in s.histogram:
        assert count == sum(low <= length < 2 * low for length in lengths)


@given(lengths_strategy, st.integers(2, 600))
def test_rows_are_those_of_a_plan_for_all_documents(lengths: list[int], seq_len: int) -> None:
    s = length_statistics([np.array(lengths)], seq_len)
    assert s.planned == s.documents
    assert s.packing_efficiency == s.tokens / (s.rows * seq_len)
    # Best fit decreasing takes equal lengths in any order for the same rows.
    assert s.rows == len(best_fit(lengths, seq_len))


def test_a_sample_says_nearly_what_all_documents_say(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.sort(np.random.default_rng(0).lognormal(6, 1.2, 60_000).astype(int) + 1)
    whole = length_statistics([lengths], 2048)
    monkeypatch.setattr(statistics, "PLANNED", 20_000)
    sampled = length_statistics([lengths], 2048)
    assert (sampled.planned, whole.planned) == (20_000, 60_000)
    assert abs(sampled.packing_efficiency - whole.packing_efficiency) < 0.002
    assert abs(sampled.rows / whole.rows - 1) < 0.002
    assert sampled[:8] == whole[:8], "only the packing is estimated"
