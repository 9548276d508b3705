"""Masked language modelling: what is chosen and shown instead, and that only seed and row number decide it."""

import numpy as np
import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.rows import MaskedTokens, MaskingConfig, PackedRow, Packer, Planes, row_violations
from cistron.datasets.rows.objectives import IGNORE
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

PROTEIN = build_tokenizer(TokenizerConfig(kind="protein"))
EOS, PAD, MASK = PROTEIN.eos_id, PROTEIN.pad_id, 32
RESIDUES = range(4, 24)
SEQ_LEN = 512


def objective(seed: int = 0, **config: object) -> MaskedTokens:
    return MaskedTokens(MaskingConfig(**config), PROTEIN, seed)  # type: ignore[arg-type]


def proteins(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Documents of so many residues, `<cls>` and eos around them."""
    rng = np.random.default_rng(seed)
    return [np.concatenate([[0], rng.integers(4, 24, length), [EOS]]).astype(np.uint8) for length in lengths]


def expand(rows: list[PackedRow], rule: MaskedTokens, numbers: list[int] | None = None) -> Planes:
    packer = Packer(SEQ_LEN, EOS, PAD, "best_fit", rule)
    planes = packer.expand(rows, numbers or list(range(len(rows))))
    assert row_violations(*planes[:4], eos_id=EOS, objective=rule) == []
    return planes


def full_rows(count: int) -> list[PackedRow]:
    return [PackedRow(proteins([100, 250, 154], seed)) for seed in range(count)]


def test_of_a_million_tokens_15_percent_are_targets_and_shown_as_80_10_10() -> None:
    rows = full_rows(2_000)
    planes = expand(rows, objective())
    original = np.stack([np.concatenate([*row.parts, np.full(SEQ_LEN - 510, PAD)]) for row in rows])
    targets = planes.labels != IGNORE
    residues = np.isin(original, RESIDUES)
    assert residues.sum() > 10**6
    assert targets.sum() == pytest.approx(0.15 * residues.sum(), rel=0.01)
    shown, truth = planes.tokens[targets], original[targets]
    assert (planes.labels[targets] == truth).all()
    assert (planes.tokens[~targets] == original[~targets]).all()
    assert (shown == MASK).sum() == pytest.approx(0.8 * targets.sum(), rel=0.01)
    # a random residue is the true one in 1 case of 20
    changed = (shown != MASK) & (shown != truth)
    assert changed.sum() == pytest.approx(0.1 * targets.sum() * 19 / 20, rel=0.01)
    assert np.isin(shown[shown != MASK], RESIDUES).all()
    each = np.bincount(shown[changed], minlength=33)[4:24]
    assert each.min() > 0.8 * each.mean()


def test_the_schedule_of_esm3_has_its_mean_and_its_spread() -> None:
    planes = expand([PackedRow(proteins([498], seed)) for seed in range(4_000)], objective(rate_schedule="esm3"))
    rates = (planes.labels != IGNORE).sum(1) / 498
    # 80 % Beta(3, 9) and 20 % uniform, from their formulas
    mean = 0.8 * 0.25 + 0.2 * 0.5
    second = 0.8 * (27 / (144 * 13) + 0.25**2) + 0.2 / 3
    assert rates.mean() == pytest.approx(mean, rel=0.02)
    assert rates.std() == pytest.approx(np.sqrt(second - mean**2), rel=0.05)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.floats(0.001, 1.0), st.integers(0, 2**40), st.integers(0, 9))
def test_every_row_has_a_target_that_is_never_a_special_token(lengths: list[int], rate: float, number: int, seed: int) -> None:
    row = PackedRow(proteins(lengths))
    planes = expand([row], objective(seed, mask_rate=rate), [number])
    targets = planes.labels[0] != IGNORE
    assert targets.any()
    assert np.isin(planes.labels[0][targets], RESIDUES).all()
    # to the token as many as the rate says, in every document
    ids = planes.sequence_ids[0]
    counts = [int(targets[ids == document].sum()) for document in range(len(lengths))]
    if sum(int(length * rate) for length in lengths):
        assert all(int(length * rate) <= count <= int(length * rate) + 1 for length, count in zip(lengths, counts, strict=True))


def test_what_is_hidden_depends_on_seed_and_number_alone() -> None:
    rows, rule = full_rows(6), objective(seed=3)
    together = expand(rows, rule, [10, 11, 12, 13, 14, 15])
    for place, number in enumerate(range(10, 16)):
        alone = expand([rows[place]], objective(seed=3), [number])
        assert (alone.tokens[0] == together.tokens[place]).all()
        assert (alone.labels[0] == together.labels[place]).all()
    assert (expand(rows, objective(seed=4), [10, 11, 12, 13, 14, 15]).labels != together.labels).any()
    assert (expand(rows[:1], rule, [11]).labels != together.labels[:1]).any()


def test_what_has_no_weight_is_no_target() -> None:
    parts = proteins([400])
    weights = np.ones(402, dtype=np.float32)
    weights[1:301] = 0.0
    weights[301:401] = 0.5
    planes = expand([PackedRow(parts, None, weights)], objective(mask_rate=0.5))
    targets = planes.labels[0] != IGNORE
    assert not targets[:301].any()
    assert targets.sum() == 50
    assert planes.weights is not None
    assert (planes.weights[0][targets] == 0.5).all()
    assert (planes.weights[0][~targets] == 0.0).all()


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(DataConfigError, match="the byte tokenizer has no mask token"):
        MaskedTokens(MaskingConfig(), ByteTokenizer(), 0)


def test_shares_that_are_none_are_refused() -> None:
    for wrong in ({"mask_rate": 0.0}, {"rate_schedule": "linear"}, {"mask_share": -0.1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            MaskingConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataConfigError, match=r"mlm\.mask_share \+ mlm\.random_share = 0\.9 \+ 0\.2: must be at most 1"):
        MaskedTokens(MaskingConfig(mask_share=0.9, random_share=0.2), PROTEIN, 0)


def test_violations_are_seen() -> None:
    rule = objective()
    planes = expand(full_rows(1), rule)
    tokens = planes.tokens.copy()
    tokens[0, int(np.flatnonzero(planes.labels[0] == IGNORE)[1])] = MASK
    found = row_violations(tokens, *planes[1:4], eos_id=EOS, objective=rule)
    assert found == ["row 0: a token without a label is the mask"]
    labels = planes.labels.copy()
    labels[0, 0] = 0
    assert row_violations(planes.tokens, labels, *planes[2:4], eos_id=EOS, objective=rule) == [
        "row 0: a special token is a target"
    ]
