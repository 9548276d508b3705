"""One corpus, one order: the same rows for every format on any ranks and workers, stopped and resumed anywhere.

Workers are real processes in one case of each format, and iterators asked in turn in all others: a process costs 1.5 s.
"""

import hashlib
import random
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.loading import DataState, transport
from cistron.datasets.readers import SourceConfig
from cistron.tests.helpers.corpora import (
    Settings,
    TakingTurns,
    config,
    numbered_rows,
    take_on_ranks,
    words,
    write_fasta,
    write_jsonl,
    write_shard,
    write_text,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital")

LANES = 8
BATCH = 4
BATCHES = 250
TOPOLOGIES = list(product([1, 2, 4], [0, 1, 2]))  # ranks, workers of each
FORMATS = ["text", "jsonl.zst", "parquet", "fasta.gz", "tokens"]


def _write(folder: Path, format: str) -> SourceConfig:
    """Write 100 documents of up to 90 characters in as many parts as there are lanes, or more; some overflow a row."""
    documents = words(100)
    parts = [documents[start::LANES] for start in range(LANES)]
    field = "text"
    if format == "text":
        pattern = write_text(folder, documents)
    elif format == "parquet":
        pq.write_table(pa.table({"body": documents, "other": range(100)}), folder / "x.parquet", row_group_size=7)
        pattern, field = str(folder / "x.parquet"), "body"
    elif format == "tokens":
        for number, part in enumerate(parts[:3]):
            write_shard(folder / f"{number}", [[*document.encode(), 0] for document in part + parts[number + 3]])
        pattern = str(folder)
    else:
        for number, part in enumerate(parts):
            if format == "jsonl.zst":
                write_jsonl(folder / f"{number}.jsonl.zst", part)
            else:
                write_fasta(folder / f"{number}.fa.gz", [document.replace(" ", "_") for document in part])
        pattern = f"{folder}/*"
    return SourceConfig(name=format, format=format.split(".")[0], paths=[pattern], field=field)


@pytest.fixture(scope="module", params=[(f, p) for f in FORMATS for p in ("best_fit", "concat")], ids="-".join)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    format, packing = request.param
    source = _write(tmp_path_factory.mktemp("corpus"), format)
    return config(source, lanes=LANES, packing=packing)


def _run(
    data: Settings, ranks: int, workers: int, batches: int, state: DataState | None = None
) -> tuple[list[bytes], DataState]:
    """Take global batches. Returns a hash of each row in order, and the state of the run."""
    settings = data.but(num_workers=workers, batch_size=BATCH // ranks)
    taken, state = take_on_ranks(settings, ranks, batches, state)
    rows = {number: hashlib.blake2b(b"".join(planes)).digest() for number, planes in numbered_rows(taken).items()}
    return [rows[number] for number in sorted(rows)], state


@pytest.fixture(scope="module")
def straight(data: Settings) -> list[bytes]:
    """Hashes of the rows of one process."""
    rows, state = _run(data, 1, 0, BATCHES)
    assert len(rows) == BATCHES * BATCH
    assert min(lane.epoch for lane in state.lanes.values()) >= 2, "several epochs are compared"
    return rows


@pytest.fixture
def in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "StatefulDataLoader", TakingTurns)


@pytest.mark.usefixtures("in_turns")
def test_rows_are_the_same_on_any_ranks_and_workers(data: Settings, straight: list[bytes]) -> None:
    for ranks, workers in TOPOLOGIES:
        assert _run(data, ranks, workers, BATCHES)[0] == straight, (ranks, workers)


@pytest.mark.usefixtures("in_turns")
def test_rows_are_the_same_when_stopped_anywhere_and_resumed_on_others(data: Settings, straight: list[bytes]) -> None:
    draw = random.Random(data.data.packing + data.data.sources[0].name)
    order = draw.sample(TOPOLOGIES, len(TOPOLOGIES))
    for first, second in zip(order, [*order[1:], order[0]], strict=True):
        stop = draw.randint(1, BATCHES - 1)
        before, state = _run(data, *first, stop)
        after, _ = _run(data, *second, BATCHES - stop, state)
        assert before + after == straight, (first, stop, second)


@pytest.mark.parametrize("data", [(format, "best_fit") for format in FORMATS], indirect=True, ids="-".join)
def test_rows_are_the_same_from_worker_processes(data: Settings, straight: list[bytes]) -> None:
    before, state = _run(data, 1, 2, 61)
    after, _ = _run(data, 2, 1, 40, state)
    assert before + after == straight[: 101 * BATCH]
