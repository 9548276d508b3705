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

import numpy as np
import numpy.typing as npt
import torch

from ...datasets.tokenizers import Ids
from ...models.loss import IGNORE
from ..errors import ConfigError
from .documents import BATCH_TOKENS, Document, Texts, batches, encoded, make_row, starts_of
from .open import ModelOrPath, OpenedModel, opened_model


class Score(NamedTuple):
    """How likely a model finds one sequence.

    Attributes:
        residues: its tokens, opening token, prefix and eos left out.
        tokens: those whose probabilities were taken.
        log_likelihood: in nats, summed over them, each with weight 1.
        excluded: residues that training took no loss on, and so are not scored.
    """

    residues: int
    tokens: int
    log_likelihood: float
    excluded: int = 0

    @property
    def mean(self) -> float:
        """The log-likelihood per token that was scored; NaN where there is none."""
        return self.log_likelihood / self.tokens if self.tokens else float("nan")


def score(
    model: ModelOrPath, sequences: Texts, *, prefix: str | bytes = "", with_eos: bool = False, batch_tokens: int = BATCH_TOKENS
) -> list[Score]:
    """Return how likely a model finds each sequence.

    A causal model gives log-likelihoods, one trained by mlm pseudo-log-likelihoods: each residue is hidden once.
    Letters are read as in training, and those that it took no loss on are not scored (`OpenedModel.letters`).

        >>> model = open_model("outputs/dna/checkpoint")
        >>> scores = score(model, ["ACGTTGCA", "TTAGC"])
        >>> [one.residues for one in scores]
        [8, 5]
        >>> all(one.mean < 0 for one in scores)
        True

    Args:
        model: what `open_model` returns, or the path of a checkpoint or a Hugging Face folder.
        sequences: each without eos or any other special token.
        prefix: a text that the model reads before each sequence, and that is not scored; a tag, for instance.
        with_eos: whether the eos of a causal model counts too.
        batch_tokens: that run at once, or those of one longer sequence.

    Returns:
        One for each sequence, in order.

    Raises:
        ModelError: a model with a head for labels.
        ConfigError: a bidirectional model whose tokenizer has no mask token, or is asked for the eos.
        DataConfigError: a sequence or the prefix cannot be encoded, or one is empty.
    """
    opened = opened_model(model)
    documents = encoded(opened, sequences, prefix)
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
    check_scorable(opened, with_eos=with_eos)
    if opened.mask.causal:
        return _causal(opened, documents, with_eos, batch_tokens)
    assert opened.tokenizer.mask_id is not None
    return _masked(opened, documents, opened.tokenizer.mask_id, batch_tokens)


def check_scorable(opened: OpenedModel, *, with_eos: bool) -> None:
    """Raise what `log_likelihoods` does where a model cannot score sequences so."""
    opened.refuse_head("score sequences")
    if not opened.mask.causal and with_eos:
        raise ConfigError("with_eos: a bidirectional model sees where a sequence ends, so its eos has no likelihood")
    if not opened.mask.causal and opened.tokenizer.mask_id is None:
        raise ConfigError(f"{opened.where}: a pseudo-likelihood needs a mask token, and {opened.tokenizer.where} has none")


@torch.no_grad()
def _causal(
    opened: OpenedModel, documents: Iterable[Document], with_eos: bool, batch_tokens: int
) -> Iterator[tuple[Document, Score]]:
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        ids = [document.ids for document in batch]
        row, starts = make_row(opened, ids), starts_of(ids)
        scored = [scored_tokens(document, max(document.begin, 1), with_eos=with_eos) for document in batch]
        following = np.zeros(row.labels.shape[1], dtype=np.bool_)  # whether the token behind each is scored
        following[: starts[-1] - 1] = np.concatenate(scored)[1:]
        row.labels[0, torch.from_numpy(~following).to(row.labels.device)] = IGNORE
        losses = opened.model(row.tokens, row.positions, row.mask, row.labels)[0].double().cpu()
        for document, start, counted in zip(batch, starts, scored, strict=False):
            yield document, score_of(document, counted, 0.0 - float(losses[start : start + len(counted)].sum()))


@torch.no_grad()
def _masked(
    opened: OpenedModel, documents: Iterable[Document], mask_id: int, batch_tokens: int
) -> Iterator[tuple[Document, Score]]:
    for batch in batches(documents, lambda document: len(document.ids), batch_tokens):
        scored = [scored_tokens(document, document.begin, with_eos=False) for document in batch]
        totals = _hidden_in_turn(opened, [document.ids for document in batch], scored, mask_id, batch_tokens)
        for document, counted, total in zip(batch, scored, totals, strict=True):
            yield document, score_of(document, counted, total)


def _hidden_in_turn(
    opened: OpenedModel, documents: list[Ids], scored: list[npt.NDArray[np.bool_]], mask_id: int, batch_tokens: int
) -> list[float]:
    """Return the sum over the scored tokens of each document of their log-probabilities, each hidden in turn."""
    totals = [0.0] * len(documents)
    questions = ((number, place) for number, counted in enumerate(scored) for place in np.flatnonzero(counted).tolist())
    for batch in batches(questions, lambda question: len(documents[question[0]]), batch_tokens):
        ids = [documents[number] for number, _ in batch]
        row = make_row(opened, ids)
        places = [start + place for start, (_, place) in zip(starts_of(ids), batch, strict=False)]
        labels = torch.full_like(row.tokens, IGNORE)
        labels[0, places] = row.tokens[0, places]
        row.tokens[0, places] = mask_id
        losses = opened.model(row.tokens, row.positions, row.mask, labels)[0, places].double().tolist()
        for (number, _), loss in zip(batch, losses, strict=True):
            totals[number] -= loss
    return totals


def scored_tokens(document: Document, first: int, *, with_eos: bool) -> npt.NDArray[np.bool_]:
    """Tell which tokens of a document count, from `first` on: those that training could have taken as targets."""
    counted = np.ones(len(document.ids), dtype=np.bool_) if document.targets is None else document.targets.copy()
    counted[:first] = False
    counted[-1] = with_eos
    return counted


def score_of(document: Document, scored: npt.NDArray[np.bool_], log_likelihood: float) -> Score:
    """Return the score of a document of which some tokens were scored."""
    never = 0 if document.targets is None else int((~document.targets[document.begin : -1]).sum())
    return Score(document.residues, int(scored.sum()), log_likelihood, never)
