"""How likely a model finds sequences: the log-likelihood of a causal one, the pseudo-log-likelihood of a masked one.

    causal   sum over i of log p(x_i | x_1 ... x_i-1): every token that something stands before. With an opening token
    that is every residue, without one all but the first; the eos only on request, as it speaks of the length mlm
    sum over i of log p(x_i | x without x_i), each residue masked once (Salazar et al. 2020, arXiv:1910.14659): as
    many passes of a sequence as it has residues

Evo 2's scoring also leaves the eos out and the first token unscored. It pads its batches, and of every sequence but the
longest it counts what follows as well; here no label lies behind a sequence's own end.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from ...models.loss import IGNORE
from ..errors import ConfigError
from .documents import BATCH_TOKENS, Document, Texts, batches, encoded, make_row, opening_tokens, starts_of
from .open import ModelOrPath, OpenedModel, opened_model


class Score(NamedTuple):
    """How likely a model finds one sequence.

    Attributes:
        residues: its tokens, opening token and eos left out.
        tokens: those whose probabilities were taken.
        log_likelihood: in nats, summed over them.
    """

    residues: int
    tokens: int
    log_likelihood: float

    @property
    def mean(self) -> float:
        """The log-likelihood per token that was scored; NaN where there is none."""
        return self.log_likelihood / self.tokens if self.tokens else float("nan")


def score(model: ModelOrPath, sequences: Texts, *, with_eos: bool = False, batch_tokens: int = BATCH_TOKENS) -> list[Score]:
    """Return how likely a model finds each sequence.

    A causal model gives log-likelihoods, one trained by mlm pseudo-log-likelihoods: each residue is hidden once.

        >>> model = open_model("outputs/dna/checkpoint")
        >>> scores = score(model, ["ACGTTGCA", "TTAGC"])
        >>> [one.residues for one in scores]
        [8, 5]
        >>> all(one.mean < 0 for one in scores)
        True

    Args:
        model: what `open_model` returns, or the path of a checkpoint or a Hugging Face folder.
        sequences: each without eos or any other special token.
        with_eos: whether the eos of a causal model counts too.
        batch_tokens: that run at once, or those of one longer sequence.

    Returns:
        One for each sequence, in order.

    Raises:
        ModelError: a model with a head for labels.
        ConfigError: a bidirectional model whose tokenizer has no mask token, or is asked for the eos.
        DataConfigError: a sequence cannot be encoded, or is empty.
    """
    opened = opened_model(model)
    documents = encoded(opened, sequences)
    return [found for _, found in log_likelihoods(opened, documents, with_eos=with_eos, batch_tokens=batch_tokens)]


def log_likelihoods(
    opened: OpenedModel, documents: Iterable[Document], *, with_eos: bool = False, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Document, Score]]:
    """Yield documents in order, each with its score, by what the model was trained for.

    Args:
        opened: the model.
        documents: any number; those of a batch are held.
        with_eos: whether the eos counts too.
        batch_tokens: that run at once, or those of one longer document.

    Raises:
        ModelError: a model with a head for labels.
        ConfigError: a bidirectional model whose tokenizer has no mask token, or is asked for the eos.
    """
    opened.refuse_head("score sequences")
    if opened.mask.causal:
        return _causal(opened, documents, with_eos, batch_tokens)
    if with_eos:
        raise ConfigError("with_eos: a bidirectional model sees where a sequence ends, so its eos has no likelihood")
    if opened.tokenizer.mask_id is None:
        raise ConfigError(f"{opened.where}: a pseudo-likelihood needs a mask token, and {opened.tokenizer.where} has none")
    return _masked(opened, documents, opened.tokenizer.mask_id, batch_tokens)


@torch.no_grad()
def _causal(
    opened: OpenedModel, documents: Iterable[Document], with_eos: bool, batch_tokens: int
) -> Iterator[tuple[Document, Score]]:
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        ids = [document.ids for document in batch]
        row, starts = make_row(opened, ids), starts_of(ids)
        if not with_eos:
            row.labels[0, [end - 2 for end in starts[1:]]] = IGNORE
        losses = opened.model(row.tokens, row.positions, row.mask, row.labels)[0].double().cpu()
        for document, start in zip(batch, starts, strict=False):
            length = len(document.ids)
            log_likelihood = 0.0 - float(losses[start : start + length].sum())
            residues = length - 1 - opening_tokens(opened.tokenizer)
            yield document, Score(residues, length - 1 - (not with_eos), log_likelihood)


@torch.no_grad()
def _masked(
    opened: OpenedModel, documents: Iterable[Document], mask_id: int, batch_tokens: int
) -> Iterator[tuple[Document, Score]]:
    first = opening_tokens(opened.tokenizer)
    questions = ((document, place) for document in documents for place in range(first, len(document.ids) - 1))
    total = 0.0
    for batch in batches(questions, lambda question: len(question[0].ids), batch_tokens):
        ids = [document.ids for document, _ in batch]
        row = make_row(opened, ids)
        places = [start + place for start, (_, place) in zip(starts_of(ids), batch, strict=False)]
        labels = torch.full_like(row.tokens, IGNORE)
        labels[0, places] = row.tokens[0, places]
        row.tokens[0, places] = mask_id
        losses = opened.model(row.tokens, row.positions, row.mask, labels)[0, places].double().tolist()
        for (document, place), loss in zip(batch, losses, strict=True):
            total -= loss
            if place == len(document.ids) - 2:
                residues = len(document.ids) - 1 - first
                yield document, Score(residues, residues, total)
                total = 0.0
