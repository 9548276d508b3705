"""How well predicted labels of documents agree with the true ones. Pure functions of numpy arrays, in float64.

| | of classes | of values |
|---|---|---|
| `accuracy` | share that is right | |
| `matthews` | Matthews correlation: 1 right, 0 as good as chance, whatever the sizes of the classes | |
| `auroc` | of two classes: how often one of class 1 has the larger score than one of class 0 | |
| `mse` | | mean squared error |
| `pearson` | | linear correlation |
| `spearman` | | correlation of ranks |

What is undefined (a correlation with a constant, one class alone) is None; `matthews` is 0 there by convention.
"""

import numpy as np
import numpy.typing as npt

SCORES = ("accuracy", "matthews", "auroc", "mse", "pearson", "spearman")
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def label_metrics(outputs: Floats, truths: Floats) -> dict[str, float | None]:
    """Return the metrics that apply.

    Args:
        outputs: [documents, outputs]: logits of classes, or one value.
        truths: [documents]: the number of the class, or the value.

    Returns:
        accuracy, matthews and, of two classes, auroc; or mse, pearson and spearman.
    """
    if outputs.shape[1] == 1:
        predicted = outputs[:, 0]
        return {
            "mse": float(np.square(predicted - truths).mean()) if len(truths) else None,
            "pearson": correlation(predicted, truths),
            "spearman": correlation(ranks(predicted), ranks(truths)),
        }
    classes = truths.astype(np.int64)
    guesses = outputs.argmax(1)
    two = {"auroc": auroc(outputs[:, 1] - outputs[:, 0], classes)} if outputs.shape[1] == 2 else {}
    return {
        "accuracy": float((guesses == classes).mean()) if len(classes) else None,
        "matthews": matthews(guesses, classes),
        **two,
    }


def matthews(guesses: Integers, classes: Integers) -> float:
    """Return the Matthews correlation of any number of classes (Gorodkin 2004, Comput. Biol. Chem. 28, 367)."""
    size = int(max(guesses.max(initial=0), classes.max(initial=0))) + 1
    confusion = np.zeros((size, size))
    np.add.at(confusion, (classes, guesses), 1)
    total, true, guessed = confusion.sum(), confusion.sum(1), confusion.sum(0)
    covariance = np.trace(confusion) * total - true @ guessed
    spread = (total**2 - guessed @ guessed) * (total**2 - true @ true)
    return float(covariance / np.sqrt(spread)) if spread else 0.0


def auroc(scores: Floats, classes: Integers) -> float | None:
    """Return the area under the ROC curve of class 1 against class 0, ties count half: the Mann-Whitney statistic."""
    positive = classes == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    return float((ranks(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def correlation(a: Floats, b: Floats) -> float | None:
    """Return Pearson's correlation; None where one side is constant or has fewer than 2 values."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def ranks(values: Floats) -> Floats:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[group.reshape(-1)]
