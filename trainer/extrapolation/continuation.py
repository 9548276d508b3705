"""Continuations of long documents, against how they really go on: BLEU and ROUGE."""

import importlib.util
from collections.abc import Sequence

import numpy as np

from ...datasets.tokenizers import Ids
from ..config import Continuation
from ..errors import ConfigError
from .long_rows import LongRowModel

PACKAGES = {"BLEU": "sacrebleu", "ROUGE": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL")


def check_packages(table: Continuation) -> None:
    """Raise ConfigError where a library is missing."""
    for metric in table.metrics if table.samples else ():
        if importlib.util.find_spec(PACKAGES[metric]) is None:
            raise ConfigError(
                f'eval.extrapolation.continuation.metrics = "{metric}": the package {PACKAGES[metric]} is not installed; pip '
                "install 'cistron[eval]', or set continuation.samples = 0"
            )


def quality(long_model: LongRowModel, table: Continuation, documents: Sequence[Ids]) -> dict[str, float]:
    """Scores of the most likely continuations of documents of one length, over their last `tokens`, from 0 to 100.

    Args:
        long_model: the model.
        table: how much to continue, and what to measure.
        documents: their ends are the references.
    """
    decode = long_model.tokenizer.decode
    prompts, references = [ids[: -table.tokens] for ids in documents], [ids[-table.tokens :] for ids in documents]
    continued = continue_greedily(long_model, prompts, table.tokens)
    return continuation_scores(table, [decode(ids.tolist()) for ids in continued], [decode(ids.tolist()) for ids in references])


def continue_greedily(long_model: LongRowModel, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
    """Return the most likely `tokens` tokens after prompts of one length, one by one, up to an eos."""
    rows = list(prompts)
    for _ in range(tokens):
        likeliest = long_model.likeliest(rows, 1)
        rows = [np.concatenate([row, token]) for row, token in zip(rows, likeliest, strict=True)]
    new = [row[-tokens:] for row in rows]
    ends = [np.flatnonzero(ids == long_model.tokenizer.eos_id) for ids in new]
    return [ids[: end[0]] if len(end) else ids for ids, end in zip(new, ends, strict=True)]


def continuation_scores(table: Continuation, texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU of the whole corpus, means of ROUGE over documents."""
    found = {}
    if "BLEU" in table.metrics:
        import sacrebleu

        found["bleu"] = float(sacrebleu.corpus_bleu(list(texts), [list(references)]).score)
    if "ROUGE" in table.metrics:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(ROUGE))
        scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
        found |= {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}
    return found
