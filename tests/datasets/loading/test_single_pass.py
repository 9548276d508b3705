"""A pass over every document once: whatever the number of ranks, of documents and of sources."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cistron.datasets.errors import DataConfigError, DataError
from cistron.datasets.loading import Batch
from cistron.datasets.readers import SourceConfig
from cistron.datasets.shards import ShardWriter, id_dtype
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import Settings
from cistron.tests.helpers.corpora import config as make_config

SEQ_LEN = 32


def write(folder: Path, counts: dict[str, int]) -> Settings:
    """Sources of numbered documents of 4 to 66 bytes: a third of them longer than a row."""
    sources = []
    for name, count in counts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name}{n}" * (1 + n % 11)}) + "\n" for n in range(count)))
        sources.append(SourceConfig(name=name, format="jsonl", paths=[str(path)], max_epochs=7, weight=0.0))
    return make_config(*sources, lanes=16, packing="concat", layout="padded", seq_len=SEQ_LEN)


def documents(counts: dict[str, int]) -> list[str]:
    """All that `write` has written."""
    return sorted(f"{name}{n}" * (1 + n % 11) for name, count in counts.items() for n in range(count))


def ranks(config: Settings, degree: int, batch_size: int, limit: int | None = None) -> list[list[Batch]]:
    """The batches of each rank."""
    config = config.but(batch_size=batch_size)
    return [list(config.single_pass(dp_rank=rank, dp_degree=degree).batches(limit)) for rank in range(degree)]


def targets(batches: list[list[Batch]]) -> list[int]:
    """Sorted: every target's id with its token, as one number."""
    pairs = [b.tokens[b.labels >= 0] * 1000 + b.labels[b.labels >= 0] for of_rank in batches for b in of_rank]
    return sorted(torch.cat(pairs).tolist())


@pytest.mark.parametrize(("degree", "batch_size"), [(1, 4), (2, 3), (3, 2), (5, 1), (4, 64)])
@pytest.mark.parametrize("counts", [{"a": 1}, {"a": 70, "b": 3}], ids=["one document", "two sources"])
def test_every_document_comes_exactly_once_on_any_number_of_ranks(
    tmp_path: Path, counts: dict[str, int], degree: int, batch_size: int
) -> None:
    config = write(tmp_path, counts)
    batches = ranks(config, degree, batch_size)
    assert len({len(of_rank) for of_rank in batches}) == 1, "collectives of the ranks match"
    assert {b.tokens.shape for of_rank in batches for b in of_rank} == {(batch_size, SEQ_LEN)}
    rows = {}
    for batch in (b for of_rank in batches for b in of_rank):
        for index, number in enumerate(batch.rows):
            used = batch.sequence_ids[index] >= 0
            assert bool(used.any()) == (number >= 0)
            assert number not in rows or number == -1
            rows[number] = (batch.sources[index], batch.tokens[index][used].tolist())
    rows.pop(-1, None)
    assert sorted(rows) == list(range(len(rows)))

    # one and the same rows, and in them every token of every document as a target exactly once
    alone = {b.rows[0]: (b.sources[0], b.tokens[0][b.sequence_ids[0] >= 0].tolist()) for b in ranks(config, 1, 1)[0]}
    assert rows == alone
    expected = [
        first * 1000 + second
        for document in documents(counts)
        for first, second in zip(document.encode(), [*document.encode()[1:], 0], strict=True)
    ]
    assert targets(batches) == sorted(expected)


def test_a_limit_takes_the_same_rows_of_all_sources_in_any_layout(tmp_path: Path) -> None:
    config = write(tmp_path, {"a": 70, "b": 70})
    chosen = [
        sorted(pair for of_rank in ranks(config, d, b, 6) for t in of_rank for pair in zip(t.rows, t.sources, strict=True))
        for d, b in ((1, 1), (1, 3), (2, 3), (3, 2))
    ]
    assert chosen == [[(0, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 1)]] * 4


def test_a_pass_begins_anew_each_time(tmp_path: Path) -> None:
    once = write(tmp_path, {"a": 70}).single_pass()
    first, second = (torch.cat([b.tokens for b in once.batches()]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(once.first_row().tokens[0], first[0])


def test_token_shards_with_weights_come_whole_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 80, size=50)
    ids = draw.integers(1, 256, size=int(lengths.sum())).astype(np.uint8)
    ids[np.cumsum(lengths) - 1] = 0
    weights = draw.random(len(ids), dtype=np.float32)
    writer = ShardWriter(tmp_path, "part", ByteTokenizer(), id_dtype(255), weighted=True)
    writer.write(ids, np.cumsum(lengths), weights)
    writer.finish([])
    source = SourceConfig(name="shards", format="tokens", paths=[str(tmp_path)])
    config = make_config(source, seq_len=SEQ_LEN, verify=True)
    batches = [b for of_rank in ranks(config, 3, 2) for b in of_rank]
    taken = torch.cat([b.weights[b.labels >= 0] for b in batches if b.weights is not None])
    firsts = np.cumsum(lengths) - lengths
    assert sorted(taken.tolist()) == sorted(np.delete(weights, firsts).tolist())


def test_sources_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    missing = SourceConfig(name="a", format="text", paths=[str(tmp_path / "none.txt")])
    for sources, error in (((), DataConfigError), ((missing,), (DataConfigError, DataError))):
        with pytest.raises(error):
            make_config(*sources, lanes=1, seq_len=8).single_pass()
