"""What the data of a rank takes of its host, as estimated and as held."""

import gc
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Loader, LoaderMemory, RowSettings, loader_memory
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.helpers.jobs import write_shards

TOKENIZER = build_tokenizer(TokenizerConfig(kind="byte"))


def estimated(config: DataConfig, seq_len: int, *, degree: int = 1, micro_batches: int = 1) -> LoaderMemory:
    return loader_memory(
        config, TOKENIZER, seq_len=seq_len, batch_size=4, micro_batches=micro_batches, degree=degree, validation=[]
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """16 MB of documents of some 800 bytes."""
    folder, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    for part in range(4):
        documents = (" ".join(draw.choices(["pack", "row", "mask", "eos"], k=draw.randint(20, 300))) for _ in range(6000))
        (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(folder / "*.jsonl")


@pytest.mark.parametrize(("seq_len", "weight"), [(128, 1.0), (2048, 1.0), (2048, 0.5)])
def test_lanes_and_batches_hold_little_less_than_is_estimated(
    text: str, seq_len: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cistron.datasets.readers.pieces.PIECES_PER_LANE", 1)  # pieces as of a large corpus
    sources = [SourceConfig(name="words", format="jsonl", paths=[text])]
    config = DataConfig(sources=sources, lanes=4, lowercase_weight=weight)
    gc.collect()
    tracemalloc.start()  # numpy reports its arrays
    try:
        before, _ = tracemalloc.get_traced_memory()
        with Loader(config, TOKENIZER, RowSettings(seq_len=seq_len, seed=0, batch_size=4)) as loader:
            for _ in range(30):
                batch = loader.next()
            _, peak = tracemalloc.get_traced_memory()
            assert batch
    finally:
        tracemalloc.stop()
    assert 0.9 * (peak - before) < sum(estimated(config, seq_len)) < 1.4 * (peak - before)


def test_ranks_share_lanes_and_shards_take_no_blocks(text: str, tmp_path: Path) -> None:
    raw = SourceConfig(name="words", format="jsonl", paths=[text])
    shards = SourceConfig(name="shards", format="tokens", paths=[str(write_shards(tmp_path / "shards"))])
    one, four = (estimated(DataConfig(sources=[raw], lanes=64), 128, degree=degree) for degree in (1, 4))
    assert one.blocks == pytest.approx(4 * four.blocks, rel=0.1)
    assert estimated(DataConfig(sources=[raw, shards], lanes=64), 128) == one
    assert estimated(DataConfig(sources=[shards], lanes=64), 128).blocks == 0


def test_workers_take_messages_and_accumulation_takes_batches(text: str) -> None:
    config = DataConfig(sources=[SourceConfig(name="words", format="jsonl", paths=[text])], lanes=8)
    alone, shared = (estimated(config.replace(num_workers=workers), 2048) for workers in (0, 4))
    assert alone.messages == 0
    assert shared.messages == 4 * 4 * 64 * 2048 * 4  # workers, messages, rows, tokens, bytes
    more = estimated(config, 2048, micro_batches=11)
    assert more.batches - alone.batches == 10 * 4 * 2048 * 24
