"""Scores of predicted labels by their definitions: counted pair by pair, in closed form, or from published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from cistron.trainer.metrics import label_metrics
from cistron.trainer.metrics.label_scores import auroc, correlation, matthews, ranks


def drawn(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels of two classes that go with them."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 12, count).astype(np.float64)
    return scores, (scores + random.normal(0, 5, count) > 6).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_the_pairs_that_are_in_order(seed: int) -> None:
    scores, classes = drawn(seed)
    pairs = list(itertools.product(scores[classes == 1], scores[classes == 0]))
    assert auroc(scores, classes) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_matthews_of_two_classes_is_the_formula_of_four_counts(seed: int) -> None:
    scores, classes = drawn(seed)
    guesses = (scores > 5).astype(np.int64)
    counts = [int(((guesses == a) & (classes == b)).sum()) for a, b in ((1, 1), (0, 0), (1, 0), (0, 1))]
    tp, tn, fp, fn = counts
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(guesses, classes) == pytest.approx(expected, abs=1e-12)


def test_matthews_of_many_classes_is_the_correlation_of_indicators() -> None:
    """Gorodkin's definition: covariances of the two n x K indicator matrices, summed over classes."""
    random = np.random.default_rng(0)
    classes = random.integers(0, 4, 200)
    guesses = np.where(random.random(200) < 0.5, classes, random.integers(0, 4, 200))
    x, y = (np.eye(4)[labels] - np.eye(4)[labels].mean(0) for labels in (guesses, classes))
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert matthews(guesses, classes) == pytest.approx(expected, abs=1e-12)
    assert matthews(classes, classes) == pytest.approx(1)
    assert matthews(np.zeros(200, dtype=np.int64), classes) == 0


def test_correlations_are_numpys_and_spearman_that_of_mean_ranks() -> None:
    random = np.random.default_rng(1)
    a = random.integers(0, 9, 50).astype(np.float64)
    b = a**3 + random.normal(0, 50, 50)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert ranks(a).tolist() == [1 + (a < value).sum() + ((a == value).sum() - 1) / 2 for value in a]
    values = label_metrics(b[:, None], a)
    assert values["mse"] == pytest.approx(((a - b) ** 2).mean())
    assert values["spearman"] == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1], abs=1e-12)
    assert label_metrics(np.exp(a)[:, None], a)["spearman"] == pytest.approx(1)


def test_what_is_undefined_is_none() -> None:
    assert auroc(np.arange(3.0), np.ones(3, dtype=np.int64)) is None
    assert correlation(np.ones(3), np.arange(3.0)) is None
    assert label_metrics(np.zeros((0, 2)), np.zeros(0)) == {"accuracy": None, "matthews": 0.0, "auroc": None}
    assert label_metrics(np.zeros((0, 1)), np.zeros(0)) == {"mse": None, "pearson": None, "spearman": None}
    assert label_metrics(np.eye(3), np.arange(3.0)) == {"accuracy": 1.0, "matthews": 1.0}
