"""The targets of rows: the tokens that a model is shown, those it has to predict, and how much each counts.

| objective | label of a position |
|---|---|
| `NextToken` | the token behind it, of the same document |
| `masking.MaskedTokens` | the token itself, where it was chosen; the model is mostly shown the mask instead |
| `DocumentLabels` | at a document's eos: the label of the document, a class or a value |
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ..tokenizers import Ids
from .config import OBJECTIVES, ObjectiveSettings

IGNORE = -100
Weights = npt.NDArray[np.float32]
TokenMask = npt.NDArray[np.bool_]


class PackedRow(NamedTuple):
    """The documents of one row, not yet laid out.

    Attributes:
        parts: Ids of each document or fragment, views; together at most `seq_len`.
        following: The token after the last part where its document goes on, else None.
        weights: float32 per token of `parts` and, where there is one, for `following`, in one array; None: all 1. A
            token of weight 0 is no target.
        label_values: Label of each part's document (number of a class, or a value), NaN where the document goes on
            behind the part; None: documents have no labels.
    """

    parts: list[Ids]
    following: int | None = None
    weights: Weights | None = None
    label_values: list[float] | None = None


class LaidOutRows(NamedTuple):
    """Rows side by side, without targets yet.

    Attributes:
        rows: What is in them.
        numbers: Global number of each row; -1 for one that fills up a batch.
        tokens: int64 [batch, width].
        sequence_ids: int32 [batch, width], -1 on padding.
        ends: int64: behind each part and each stretch of padding, in the flattened batch.
        used: Tokens of each row.
    """

    rows: Sequence[PackedRow]
    numbers: Sequence[int]
    tokens: npt.NDArray[np.int64]
    sequence_ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    used: Sequence[int]

    def own_weights(self, shift: int) -> Weights | None:
        """Return float32 [batch, width]: the weight of the token `shift` behind each; None where no row has any."""
        if all(row.weights is None for row in self.rows):
            return None
        weights = np.ones(self.tokens.shape, dtype=np.float32)
        for place, (row, used) in enumerate(zip(self.rows, self.used, strict=True)):
            if row.weights is not None:
                own = row.weights[shift : shift + used]
                weights[place, : len(own)] = own
        return weights


class Targets(NamedTuple):
    """The targets of a batch.

    Attributes:
        tokens: int64 [batch, width], as the model is shown them.
        labels: int64 [batch, width], -100 where no loss is taken.
        weights: float32 [batch, width]: of each label, 0 where there is none; None: 1 for each label.
        values: float32 [batch, width]: the value at each label; None where labels are classes.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    weights: Weights | None
    values: npt.NDArray[np.float32] | None = None


class Objective(Protocol):
    """A rule for targets: a pure function of rows and their numbers.

    Attributes:
        causal: Whether the model must be causal (True) or bidirectional (False); None: either will do.
        labels: Whether targets are labels of whole documents: a head predicts them, each source names where they are,
            and no document is cut.
        shift: Offset from a position to the token that is its label: 1 for the next token.
        classes: Names of the classes that labels are of; empty where labels are values, or documents have none.
    """

    causal: ClassVar[bool | None]
    labels: ClassVar[bool] = False
    shift: int = 0
    classes: tuple[str, ...] = ()

    @classmethod
    def build(cls, settings: ObjectiveSettings) -> "Objective":
        """Return the objective of a job. Raises DataConfigError where the tokenizer cannot serve it."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what determines the targets, as plain JSON: a part of the identity of a run's data."""
        ...

    def targets(self, laid: LaidOutRows) -> Targets:
        """Return what the model is shown of some rows, and its targets."""
        ...

    def violations(
        self, tokens: npt.NDArray[Any], labels: npt.NDArray[Any], used: TokenMask, ends: TokenMask
    ) -> dict[str, TokenMask]:
        """Return what can be wrong with labels [batch, width], and where; `used` is not padding, `ends` is eos."""
        ...


@OBJECTIVES.add("causal", says="the next token")
class NextToken(Objective):
    """Causal language modelling.

    Decided by position: -100 where a document ends and on padding, so that an eos is a target and padding is none even
    where both are one id. The last token of a fragment is labelled with the token that opens the next one.
    """

    causal: ClassVar[bool | None] = True
    shift = 1

    @classmethod
    def build(cls, settings: ObjectiveSettings) -> "NextToken":
        """Return the objective, which depends on nothing else."""
        return cls()

    @override
    def identity(self) -> dict[str, Any]:
        return {"name": "causal"}

    @override
    def targets(self, laid: LaidOutRows) -> Targets:
        tokens = laid.tokens.reshape(-1)
        flat = np.empty_like(tokens)
        flat[:-1] = tokens[1:]
        flat[laid.ends - 1] = IGNORE
        labels = flat.reshape(laid.tokens.shape)
        for place, (row, used) in enumerate(zip(laid.rows, laid.used, strict=True)):
            labels[place, used:] = IGNORE
            if row.following is not None:
                labels[place, used - 1] = row.following
        weights = laid.own_weights(self.shift)
        if weights is not None:
            weights[labels == IGNORE] = 0.0
        return Targets(laid.tokens, labels, weights)

    @override
    def violations(
        self, tokens: npt.NDArray[Any], labels: npt.NDArray[Any], used: TokenMask, ends: TokenMask
    ) -> dict[str, TokenMask]:
        goes_on = used & ~ends
        return {
            "the label at an eos is not -100": ends & (labels != IGNORE),
            "a label is not the next token of its document": goes_on[:, :-1] & used[:, 1:] & (labels[:, :-1] != tokens[:, 1:]),
            "the last token of a fragment has no target": goes_on[:, -1:] & (labels[:, -1:] == IGNORE),
        }


@OBJECTIVES.add("regression", says="a document's label, a value")
@OBJECTIVES.add("classification", says="a document's label, one of head.classes")
class DocumentLabels(Objective):
    """One target per document, at its eos.

    Args:
        classes: Their names; none: labels are values, which `Targets.values` has, beside the label 0.
    """

    causal: ClassVar[bool | None] = None
    labels: ClassVar[bool] = True

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    @classmethod
    def build(cls, settings: ObjectiveSettings) -> "DocumentLabels":
        """Return the objective of a job's classes."""
        return cls(settings.classes)

    @override
    def identity(self) -> dict[str, Any]:
        return {"name": "classification" if self.classes else "regression", "classes": " ".join(map(repr, self.classes))}

    @override
    def targets(self, laid: LaidOutRows) -> Targets:
        labels = np.full(laid.tokens.size, IGNORE)
        values = np.zeros(laid.tokens.size, dtype=np.float32)
        width = laid.tokens.shape[1]
        for place, row in enumerate(laid.rows):
            lasts = place * width + np.cumsum([len(part) for part in row.parts], dtype=np.int64) - 1
            found = np.full(len(lasts), np.nan) if row.label_values is None else np.array(row.label_values)
            whole = ~np.isnan(found)
            labels[lasts[whole]] = found[whole] if self.classes else 0
            values[lasts[whole]] = found[whole]
        shape = laid.tokens.shape
        return Targets(laid.tokens, labels.reshape(shape), None, None if self.classes else values.reshape(shape))

    @override
    def violations(
        self, tokens: npt.NDArray[Any], labels: npt.NDArray[Any], used: TokenMask, ends: TokenMask
    ) -> dict[str, TokenMask]:
        return {
            "a document has no label": ends & (labels == IGNORE),
            "a label is not at an eos": ~ends & (labels != IGNORE),
            "a label is no class": labels >= max(len(self.classes), 1),
        }
