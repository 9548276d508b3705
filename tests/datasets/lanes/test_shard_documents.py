"""Token shards in lanes: every epoch each token once, in an order of its own, spread over lanes, resumed to the bit."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cistron.datasets.documents import DocumentConfig, Strands
from cistron.datasets.errors import BadRecords, DataError
from cistron.datasets.files import FileStore
from cistron.datasets.lanes import Lane, LaneRow, LaneState, ShardCorpus, ShardDocuments
from cistron.datasets.lanes import shard_documents as shard_blocks
from cistron.datasets.lanes.blocks import Address
from cistron.datasets.nucleotides import reverse_complement
from cistron.datasets.randomness import Shuffle
from cistron.datasets.rows import PackedRow, Packer, row_violations
from cistron.datasets.rows.objectives import IGNORE
from cistron.datasets.shards import open_shards
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import parts_of, windows, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

EOS, PAD = 0, 1
LANES = 3


@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_shuffle_is_a_permutation_of_which_any_part_can_be_computed(count: int, key: int) -> None:
    shuffle = Shuffle(count, key, 1)
    values = shuffle[np.arange(count)]
    assert sorted(values.tolist()) == list(range(count))
    part = np.arange(count)[:: max(count // 7, 1)]
    assert (shuffle[part] == values[part]).all()


def test_a_shuffle_leaves_no_trace_of_the_order() -> None:
    values = Shuffle(100_000, 7)[np.arange(100_000)]
    # In a random order neighbours lie a third of the whole apart; places and values are uncorrelated in 1 / sqrt(n).
    assert abs(np.abs(np.diff(values)).mean() / 100_000 - 1 / 3) < 0.005
    assert abs(np.corrcoef(values, np.arange(100_000))[0, 1]) < 0.015
    assert (values != Shuffle(100_000, 8)[np.arange(100_000)]).mean() > 0.999


@pytest.fixture(scope="module", params=["weighted", "plain"])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardCorpus]:
    """Two shards; units of 256 tokens and blocks of 1,024 stand for larger ones."""
    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    lengths = [random.integers(2, 60, 150).tolist(), [*random.integers(2, 60, 50).tolist(), 5000, 257, 256, 512, 2]]
    token = 2
    for number, shard in enumerate(lengths):
        documents = []
        for length in shard:
            documents.append([*range(token, token + length - 1), EOS])
            token += length
        write_shard(folder / f"{number}", documents, weighted=request.param == "weighted" and number == 0)
    with patch.object(shard_blocks, "UNIT_TOKENS", 256), patch.object(shard_blocks, "BLOCK_TOKENS", 1024):
        yield _corpus(folder)


def _corpus(folder: Path, seq_len: int = 32, lanes: int = LANES, **treatment: Any) -> ShardCorpus:
    storage = FileStore()
    shards = open_shards(storage.expand([str(folder)], "*.json"), storage)
    return ShardCorpus(shards, seq_len, lanes, DocumentConfig(**treatment))


def _lane(corpus: ShardCorpus, lane: int, policy: str, state: LaneState | None = None) -> Lane:
    strands = Strands(corpus.config.reverse_complement, 0, ByteTokenizer())
    documents = ShardDocuments(corpus, lane, (0, 0), policy == "concat", strands, BadRecords(skip=True))
    packer = Packer(corpus.seq_len, EOS, PAD, policy, overlap=corpus.config.window_overlap)
    return Lane(documents, packer, (0, 0, lane), state or LaneState())


def _epoch(corpus: ShardCorpus, lane: int, policy: str) -> Iterator[LaneRow]:
    """Yield the rows of a lane's first epoch."""
    for row in _lane(corpus, lane, policy).rows():
        yield row
        if not row.left:
            return


def _all_rows(corpus: ShardCorpus) -> list[tuple[PackedRow, LaneState]]:
    """Return the rows of an epoch of all lanes."""
    found: list[tuple[PackedRow, LaneState]] = []
    for lane in range(corpus.lanes):
        found.extend((row.packed, row.state) for row in _epoch(corpus, lane, "best_fit"))
    return found


@pytest.mark.parametrize("policy", ["best_fit", "concat", "padded"])
def test_an_epoch_of_all_lanes_holds_every_token_once(policy: str, corpus: ShardCorpus) -> None:
    rows = []
    for lane in range(LANES):
        rows += [row.packed for row in _epoch(corpus, lane, policy)]
    planes = Packer(corpus.seq_len, EOS, PAD, policy).expand(rows, range(len(rows)))
    assert row_violations(*planes[:4], eos_id=EOS) == []
    total = sum(shard.tokens for shard in corpus.shards)
    numbers = sorted(planes.tokens[(planes.sequence_ids >= 0) & (planes.tokens != EOS)].tolist())
    ends = np.cumsum(np.concatenate([np.diff(shard.offsets().astype(int)) for shard in corpus.shards])) + 1
    assert numbers == sorted(set(range(2, total + 2)) - set(ends.tolist()))
    # A label is its token's successor, or eos where the document ends; all but the first token of each are labels.
    inside = planes.labels > EOS
    assert (planes.labels[inside] == planes.tokens[inside] + 1).all()
    assert (planes.labels != IGNORE).sum() == total - corpus.documents
    if planes.weights is not None:
        weighted = inside & (planes.labels < ends[149])  # in the first shard
        assert np.allclose(planes.weights[weighted] * 1000, planes.labels[weighted])
    if policy == "concat":
        assert ((planes.sequence_ids < 0).any(1)).sum() <= LANES, "only the last row of a lane has padding"


@settings(max_examples=30, deadline=None)
@given(policy=st.sampled_from(["best_fit", "concat", "padded"]), lane=st.integers(0, LANES - 1), stop=st.integers(1, 80))
def test_a_lane_of_shards_resumes_to_the_bit(corpus: ShardCorpus, policy: str, lane: int, stop: int) -> None:
    rows = _lane(corpus, lane, policy).rows()
    for _ in range(stop):
        _, state, _ = next(rows)
    again = _lane(corpus, lane, policy, state).rows()
    for _ in range(5):
        row, state, left = next(rows)
        resumed, resumed_state, resumed_left = next(again)
        assert (state, left) == (resumed_state, resumed_left)
        assert row.following == resumed.following
        assert all((a == b).all() for a, b in zip(row.parts, resumed.parts, strict=True))


def test_a_long_document_is_spread_over_all_lanes(corpus: ShardCorpus) -> None:
    held = []
    for lane in range(LANES):
        blocks = ShardDocuments(corpus, lane, (0, 0), False).blocks(0, Address(0, -1, 1, 0))
        held.append(sum(int(block.block.open.sum()) for block in blocks))
    # 5,000 tokens are 19 units that go on and a last one; 257 and 512 are one each.
    assert sum(held) == 19 + 1 + 1
    assert min(held) >= 3


def test_every_epoch_has_an_order_of_its_own(corpus: ShardCorpus) -> None:
    documents = ShardDocuments(corpus, 0, (0, 0), False)
    first, second = (
        [start for block in documents.blocks(epoch, Address(0, -1, 1, 0)) for start in block.block.starts] for epoch in (0, 1)
    )
    assert first[:20] != second[:20]


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_maps_of_many_shards_hold_no_file_handle(tmp_path: Path) -> None:
    for number in range(40):
        write_shard(tmp_path / f"{number:02}", [[5, EOS], [6, 7, EOS]], weighted=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    corpus = _corpus(tmp_path)
    blocks = [next(ShardDocuments(corpus, lane, (0, 0), False).blocks(0, Address(0, -1, 1, 0))) for lane in range(LANES)]
    assert sum(len(block.block.arrays) for block in blocks) > 40
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_of_fewer_documents_than_lanes_each_is_in_one_lane(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", [[5, EOS], [6, 7, EOS]])
    corpus = _corpus(tmp_path)
    for epoch in range(5):
        of_lanes = [list(ShardDocuments(corpus, lane, (0, 0), False).blocks(epoch, Address(0, -1, 1, 0))) for lane in range(3)]
        assert sorted(sum(len(built.block.lengths) for built in built_by_lane) for built_by_lane in of_lanes) == [0, 1, 1]


def test_lengths_of_a_source_sorted_by_length_are_mixed_everywhere(tmp_path: Path) -> None:
    lengths = np.sort(np.random.default_rng(0).integers(2, 250, 3000))
    write_shard(tmp_path / "x", [[5] * int(length - 1) + [EOS] for length in lengths])
    blocks = ShardDocuments(_corpus(tmp_path), 1, (0, 0), False).blocks(0, Address(0, -1, 1, 0))
    quarters = np.array_split(np.concatenate([block.block.lengths for block in blocks]), 4)
    assert max(abs(quarter.mean() / lengths.mean() - 1) for quarter in quarters) < 0.15


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Documents of bases, each begun by a name that tells its strand, some of several units of 256 tokens."""
    folder = tmp_path_factory.mktemp("genome")
    random = np.random.default_rng(1)
    for shard in range(2):
        documents = []
        for number in range(150):
            length = 1000 if number % 50 == 7 else int(random.integers(8, 120))
            name = "".join("ACGT"[number // 4**place % 4] for place in range(4)) + "acgt"[shard] * 2
            documents.append([*(name + "".join(random.choice(list("ACGT"), length))).encode(), EOS])
        write_shard(folder / "plain" / f"{shard}", documents)
        write_shard(folder / "weighted" / f"{shard}", documents, weighted=shard == 0)
    with patch.object(shard_blocks, "UNIT_TOKENS", 256), patch.object(shard_blocks, "BLOCK_TOKENS", 1024):
        yield folder


def _documents(folder: Path) -> list[list[int]]:
    shards = _corpus(folder).shards
    return [part.tolist() for shard in shards for part in np.split(shard.ids(), shard.offsets()[1:-1].astype(np.int64))]


def _other(document: list[int]) -> list[int]:
    return [*reverse_complement(bytes(document[:-1])), EOS]


@pytest.mark.parametrize(("overlap", "share"), [(5, 0.0), (31, 0.0), (20, 0.5)])
def test_units_of_long_documents_are_windows_too(genome: Path, overlap: int, share: float) -> None:
    corpus = _corpus(genome / "plain", long_documents="window", window_overlap=overlap, reverse_complement=share)
    assert len(corpus.longs) == 6
    found = sorted(parts_of([row for row, _ in _all_rows(corpus)], shift=1))
    documents, chosen = _documents(genome / "plain"), _chosen(corpus)
    assert len(chosen) == 300
    assert 0 < sum(chosen) < 300 or not share
    read = [_other(document) if other else document for document, other in zip(documents, chosen, strict=True)]
    assert found == sorted(part for document in read for part in windows(document, 32, overlap, shift=1))


def _chosen(corpus: ShardCorpus) -> list[bool]:
    """Which documents are read on their other strand, from the decision itself; how these look is tested."""
    strands = Strands(corpus.config.reverse_complement, 0, ByteTokenizer())
    each = [strands.chosen(Path(shard.path).name, np.arange(shard.documents), 0) for shard in corpus.shards]
    return np.concatenate(each).tolist() if corpus.config.reverse_complement else [False] * corpus.documents


@pytest.mark.parametrize("lanes", [1, LANES])
def test_strands_do_not_depend_on_lanes_and_weights_are_mirrored_with_them(genome: Path, lanes: int) -> None:
    corpus = _corpus(genome / "weighted", lanes=lanes, reverse_complement=0.5)
    rows = [row for row, _ in _all_rows(corpus)]
    documents, chosen = _documents(genome / "plain"), _chosen(corpus)
    read = [_other(document) if other else document for document, other in zip(documents, chosen, strict=True)]
    cut = [document[start : start + 32] for document in read for start in range(0, len(document), 32)]
    assert sorted(part.tolist() for row in rows for part in row.parts) == sorted(cut)
    # In shard 0 the weight of a token is its id / 1000, of the letter as it stands in the shard.
    pairs = dict(zip(b"ACGTacgt\0", b"TGCAtgca\0", strict=True))
    expected: Counter[tuple[int, float]] = Counter()
    for number, (document, other) in enumerate(zip(documents, chosen, strict=True)):
        weights = [id_ / 1000 if number < 150 else 1.0 for id_ in document]
        expected.update((pairs[id_] if other else id_, np.float32(w).item()) for id_, w in zip(document, weights, strict=True))
    found: Counter[tuple[int, float]] = Counter()
    for row in rows:
        ids = [token for part in row.parts for token in part.tolist()]
        weights = [1.0] * len(ids) if row.weights is None else row.weights.tolist()
        found.update(zip(ids, weights[: len(ids)], strict=True))
    assert found == expected


def test_a_shard_of_documents_that_are_truncated_refused_or_have_no_other_strand(tmp_path: Path) -> None:
    documents = [[*b"ACGT" * 8, EOS], [*b"AC", EOS], [*b"AUG", EOS], [*b"ACGT" * 3, EOS], [*b"G", EOS]]
    write_shard(tmp_path / "x", documents)
    rows = _all_rows(_corpus(tmp_path, 8, 1, long_documents="truncate"))
    assert [row.following for row, _ in rows if row.following] == [ord("A")] * 2
    assert [bytes(part.tolist()) for row, _ in rows for part in row.parts if len(part) == 8] == [b"ACGTACGT"] * 2
    first_rows = _corpus(tmp_path, 8, 1, long_documents="truncate")
    state = next(state for _, state, _ in _lane(first_rows, 0, "best_fit").rows() if state.epoch)
    assert (state.documents, state.truncated) == (5, 2)
    bad = _corpus(tmp_path, 8, 1, long_documents="error", reverse_complement=1.0)
    state = next(state for _, state, _ in _lane(bad, 0, "best_fit").rows() if state.epoch)
    assert (state.documents, state.skipped) == (2, 3)
    strict = ShardDocuments(bad, 0, (0, 0), False, Strands(1.0, 0, ByteTokenizer()))
    with pytest.raises(DataError, match=r"x\.json, record [03]: the document has (33|13) tokens, its eos included"):
        list(strict.blocks(0, Address(0, -1, 1, 0)))
    strict = ShardDocuments(_corpus(tmp_path, 8, 1), 0, (0, 0), False, Strands(1.0, 0, ByteTokenizer()))
    with pytest.raises(DataError, match=r"x\.json, record 2: 'U' is no IUPAC code of DNA"):
        list(strict.blocks(0, Address(0, -1, 1, 0)))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("long_documents", ["split", "window", "truncate"])
def test_every_token_of_a_block_is_checked_before_it_is_used(share: float, long_documents: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lengths = [1, 2, 700, 3000, 64, 256, 257, 5000]
    documents = [[*random.choice(list(b"ACGT"), length), EOS] for length in lengths]
    overlap = 8 if long_documents == "window" else 0
    with (
        patch.object(shard_blocks, "UNIT_TOKENS", 256),
        patch.object(shard_blocks, "BLOCK_TOKENS", 1024),
        patch("cistron.datasets.shards.format.BLOCK", 16),
        patch("cistron.datasets.shards.blocks.BLOCK", 16),
        patch("cistron.datasets.shards.writer.BLOCK", 16),
        patch.object(ShardCorpus, "check", autospec=True) as check,
    ):
        write_shard(tmp_path / "x", documents)
        treatment = {"reverse_complement": share, "long_documents": long_documents, "window_overlap": overlap}
        corpus = _corpus(tmp_path, lanes=1, **treatment)
        ids, *others = corpus.maps(0)
        shown = np.full_like(ids, ord("A"))  # until it is checked
        corpus._maps[0] = (shown, *others)

        def noted(corpus: ShardCorpus, *tokens: Any) -> None:
            for _, blocks in corpus.checks.fresh(*tokens):
                for block in blocks:
                    part = slice(block * 16, (block + 1) * 16)
                    shown[part] = ids[part]

        check.side_effect = noted
        hidden = _all_rows(corpus)
        check.side_effect = None
        plain = _all_rows(_corpus(tmp_path, lanes=1, **treatment))
    assert (shown == ids).all() == (long_documents != "truncate"), "what is not used is not checked"
    assert [([*map(bytes, row.parts)], row.following) for row, _ in hidden] == [
        ([*map(bytes, row.parts)], row.following) for row, _ in plain
    ]
