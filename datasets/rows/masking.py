"""Masked language modelling (Devlin et al. 2019): hide some tokens of each document, which are the targets.

Of the tokens that may be targets, a share is chosen; of these 80 % are shown as the mask, 10 % as a random residue, and
10 % as they are. All of it is a pure function of (seed, number of the row), whatever ranks, workers and resumes there
are.

Shares are drawn without the noise of independent coins: a document of n tokens has floor(n * rate + u) chosen, u
uniform, and the chosen ones of a row are assigned to mask, random and kept at even distances. So 150,000 choices are
within 0.1 % of 80/10/10 where coins would be within 0.8 %.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ..errors import refuse
from ..randomness import random_bits, uniform
from ..tokenizers import Tokenizer
from .config import OBJECTIVES, MaskingConfig, ObjectiveSettings
from .objectives import IGNORE, LaidOutRows, Objective, Targets, TokenMask

# ESM-3 (Hayes et al. 2024, appendix A.2.3) draws masking rates from 80 % Beta(3, 9), mean 0.25, and 20 % uniform.
# The third smallest of eleven uniform numbers is distributed as Beta(3, 9).
BETA_SHARE, BETA_RANK, BETA_OF = 0.8, 2, 11
MLM = 0x6D6C6D  # in the place of a source's number, so that no lane draws the same bits
ROW, DOCUMENTS, SHOWN = range(3)  # what they are for
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@OBJECTIVES.add("mlm", says="hidden tokens, from both sides")
class MaskedTokens(Objective):
    """Targets are hidden tokens, which the model predicts from both sides.

    Args:
        config: Shares.
        tokenizer: Names the mask, what is never hidden, and what may be shown instead.
        seed: Of all choices.

    Raises:
        DataConfigError: The tokenizer has no mask.
    """

    causal: ClassVar[bool | None] = False

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, seed: int) -> None:
        wrong = config.complaints()
        if tokenizer.mask_id is None:
            wrong.append(
                f'training.objective = "mlm": the {tokenizer.kind} tokenizer has no mask token; '
                'kind = "protein" and kind = "dna" have one, and of kind = "hf" tokenizer.mask_token names it'
            )
        refuse(wrong)
        assert tokenizer.mask_id is not None
        self._config, self._seed, self._mask_id = config, seed, tokenizer.mask_id
        self._residues = np.array(tokenizer.residue_ids, dtype=np.int64)
        self._special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
        size = max(tokenizer.vocab_size, int(self._special.max()) + 1)
        self._never = np.zeros(size, dtype=bool)
        self._never[self._special] = True

    @classmethod
    def build(cls, settings: ObjectiveSettings) -> "MaskedTokens":
        """Return the objective of a job. Raises DataConfigError, see above."""
        return cls(settings.masking, settings.tokenizer, settings.seed)

    @override
    def identity(self) -> dict[str, Any]:
        config = self._config
        shares = {"mask_share": config.mask_share, "random_share": config.random_share}
        return {"name": "mlm", "rate": config.mask_rate, "schedule": config.rate_schedule, **shares}

    @override
    def targets(self, laid: LaidOutRows) -> Targets:
        # A row is without a target only where no token of it may be one.
        tokens, labels = laid.tokens.copy(), np.full_like(laid.tokens, IGNORE)
        weights = laid.own_weights(self.shift)
        for place, (number, used) in enumerate(zip(laid.numbers, laid.used, strict=True)):
            if number < 0:
                continue
            row = tokens[place, :used]
            allowed = ~self._never[row]
            if weights is not None:
                allowed &= weights[place, :used] > 0
            chosen = self._choose(number, np.flatnonzero(allowed), laid.sequence_ids[place])
            labels[place, chosen] = row[chosen]
            row[chosen] = self._shown(number, row[chosen])
        if weights is not None:
            weights[labels == IGNORE] = 0.0
        return Targets(tokens, labels, weights)

    @override
    def violations(
        self, tokens: npt.NDArray[Any], labels: npt.NDArray[Any], used: TokenMask, ends: TokenMask
    ) -> dict[str, TokenMask]:
        return {
            "the label at an eos is not -100": ends & (labels != IGNORE),
            "a special token is a target": np.isin(labels, self._special),
            "a token without a label is the mask": used & (labels == IGNORE) & (tokens == self._mask_id),
        }

    def _choose(
        self, number: int, allowed: npt.NDArray[np.int64], sequence_ids: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64]:
        """Return some of the `allowed` places of a row, in random order."""
        if not len(allowed):
            return allowed
        documents = sequence_ids[allowed]
        keys = uniform(random_bits(len(allowed), self._seed, MLM, ROW, number))
        order = np.argsort(documents + keys)  # by document, and at random within: one sort, in half of the time of lexsort
        counts = np.bincount(documents)
        rates, spare = self._rates(number, len(counts))
        chosen = np.floor(counts * rates + spare).astype(np.int64)
        rank = np.arange(len(allowed)) - (np.cumsum(counts) - counts)[documents[order]]
        places = order[rank < chosen[documents[order]]]
        if not len(places):
            places = np.argmin(keys, keepdims=True)
        return allowed[places[np.argsort(keys[places])]]

    def _rates(self, number: int, documents: int) -> tuple[Floats, Floats]:
        """Return for each document of a row the share to choose, and what rounds it: uniform in [0, 1)."""
        draws = uniform(random_bits(documents * (BETA_OF + 3), self._seed, MLM, DOCUMENTS, number)).reshape(documents, -1)
        spare, mixture, even, rest = draws[:, 0], draws[:, 1], draws[:, 2], draws[:, 3:]
        if self._config.rate_schedule == "constant":
            return np.full(documents, self._config.mask_rate), spare
        beta = np.sort(rest, axis=1)[:, BETA_RANK]
        return np.where(mixture < BETA_SHARE, beta, even), spare

    def _shown(self, number: int, chosen: Integers) -> Integers:
        """Return what is shown instead of the chosen tokens of a row, which are in random order."""
        draws = uniform(random_bits(len(chosen) + 1, self._seed, MLM, SHOWN, number))
        residues = self._residues[(draws[1:] * len(self._residues)).astype(np.int64)]
        share = (np.arange(len(chosen)) + draws[0]) / max(len(chosen), 1)
        masked = share < self._config.mask_share
        random = ~masked & (share < self._config.mask_share + self._config.random_share)
        return np.where(masked, self._mask_id, np.where(random, residues, chosen))
