"""How likely a model finds sequences: the log-likelihood of a causal one, the pseudo-log-likelihood of a masked one.

    causal   sum over i of log p(x_i | x_1 ... x_i-1): every token that something stands before. With an opening token that is
             every residue, without one all but the first; the eos only on request, as it speaks of the length
    mlm      sum over i of log p(x_i | x without x_i), each residue masked in turn (Salazar et al. 2020, arXiv:1910.14659):
             as many passes of a sequence as it has residues

Evo 2's scoring also leaves the eos out and the first token unscored. It pads its batches, and of every sequence but the longest
it counts what follows as well; here no label lies behind a sequence's own end.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from ...datasets.tokenizers import Ids
from ...models.loss import IGNORE
from ..errors import ConfigError
from .documents import BATCH_TOKENS, Document, batches, make_row, opening_tokens
from .open import OpenedModel, refuse_head


class Score(NamedTuple):
    """Of one sequence.

    Attributes:
        document: the sequence.
        tokens: whose probabilities were taken.
        log_likelihood: in nats, summed over them.
    """

    document: Document
    tokens: int
    log_likelihood: float


def score(
    opened: OpenedModel, documents: Iterable[Document], *, with_eos: bool = False, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Score]:
    """Scores in order of the documents, by what the model was trained for.

    Args:
        opened: the model.
        documents: any number; those of a batch are held.
        with_eos: whether the eos counts too.
        batch_tokens: that run at once, or those of one longer document.

    Raises:
        ModelError: a model with a head for labels.
        ConfigError: a bidirectional model whose tokenizer has no mask token, or is asked for the eos.
    """
    refuse_head(opened, "score sequences")
    if opened.mask.causal:
        return _causal(opened, documents, with_eos, batch_tokens)
    if with_eos:
        raise ConfigError("--with-eos: a bidirectional model sees where a sequence ends, so its eos has no likelihood")
    if opened.tokenizer.mask_id is None:
        raise ConfigError(f"{opened.where}: a pseudo-likelihood needs a mask token, and {opened.tokenizer.where} has none")
    return _masked(opened, documents, opened.tokenizer.mask_id, batch_tokens)


@torch.no_grad()
def _causal(opened: OpenedModel, documents: Iterable[Document], with_eos: bool, batch_tokens: int) -> Iterator[Score]:
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        row = make_row(opened, [document.ids for document in batch])
        labels = torch.full_like(row.tokens, IGNORE)
        labels[:, :-1] = row.tokens[:, 1:]
        ends = torch.tensor(row.starts[1:], device=labels.device)
        labels[0, ends - 1] = IGNORE  # behind an eos another document begins
        if not with_eos:
            labels[0, ends - 2] = IGNORE
        labels[0, row.starts[-1] :] = IGNORE
        losses = opened.model(row.tokens, row.positions, row.mask, labels)[0].double().cpu()
        for document, start in zip(batch, row.starts, strict=False):
            length = len(document.ids)
            yield Score(document, length - 1 - (not with_eos), 0.0 - float(losses[start : start + length].sum()))


class _Masked(NamedTuple):
    """A document with one residue hidden."""

    document: Document
    place: int

    def ids(self, mask_id: int) -> Ids:
        ids = self.document.ids.copy()
        ids[self.place] = mask_id
        return ids


@torch.no_grad()
def _masked(opened: OpenedModel, documents: Iterable[Document], mask_id: int, batch_tokens: int) -> Iterator[Score]:
    first = opening_tokens(opened.tokenizer)
    questions = (_Masked(document, place) for document in documents for place in range(first, len(document.ids) - 1))
    total = 0.0
    for batch in batches(questions, lambda question: len(question.document.ids), batch_tokens):
        row = make_row(opened, [question.ids(mask_id) for question in batch])
        labels = torch.full_like(row.tokens, IGNORE)
        places = [start + question.place for start, question in zip(row.starts, batch, strict=False)]
        targets = [int(question.document.ids[question.place]) for question in batch]
        labels[0, places] = torch.tensor(targets, device=labels.device)
        losses = opened.model(row.tokens, row.positions, row.mask, labels)[0, places].double().tolist()
        for (document, place), loss in zip(batch, losses, strict=True):
            total -= loss
            if place == len(document.ids) - 2:
                yield Score(document, len(document.ids) - 1 - first, total)
                total = 0.0
