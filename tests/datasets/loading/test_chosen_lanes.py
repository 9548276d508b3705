"""How many lanes a job has that names none."""

from pathlib import Path

import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.readers import SourceConfig
from cistron.tests.helpers.corpora import Settings, byte_loader, config, numbered_rows, take, words, write_jsonl, write_text


def _lines(folder: Path, bytes_: int) -> SourceConfig:
    documents = words(bytes_ // 60)
    return SourceConfig(name="lines", format="jsonl", paths=[write_jsonl(folder / "x.jsonl", documents)])


@pytest.mark.parametrize(("bytes_", "degree", "workers", "lanes"), [(600, 1, 0, 1), (600, 2, 2, 4), (600, 32, 0, 32)])
def test_a_small_source_has_a_lane_for_each_rank_and_worker(
    tmp_path: Path, bytes_: int, degree: int, workers: int, lanes: int
) -> None:
    settings = config(_lines(tmp_path, bytes_), lanes=None, num_workers=workers)
    assert byte_loader(settings, dp_degree=degree).lanes == lanes


def test_a_source_has_lanes_by_its_size_up_to_sixteen(tmp_path: Path) -> None:
    for number, (size, least, most) in enumerate([(2**18, 1, 8), (2**22, 16, 16)]):
        (tmp_path / str(number)).mkdir()
        settings = config(_lines(tmp_path / str(number), size), lanes=None)
        assert least <= byte_loader(settings).lanes <= most
        assert byte_loader(settings, dp_degree=3).lanes % 3 == 0


def test_files_that_are_documents_are_counted(tmp_path: Path) -> None:
    write_text(tmp_path, ["a text of its own"] * 13)
    settings = config(SourceConfig(name="text", format="text", paths=[str(tmp_path / "*.txt")]), lanes=None)
    assert byte_loader(settings).lanes == 3


def test_a_resume_keeps_the_number_or_says_what_divides_it(tmp_path: Path) -> None:
    settings: Settings = config(_lines(tmp_path, 2**18), lanes=None)
    with byte_loader(settings, batch_size=4) as loader:
        lanes = loader.lanes
        assert lanes > 1
        take(loader, 2)
        state = loader.state()
        straight = numbered_rows(take(loader, 3))
    _lines(tmp_path, 2**18)
    with byte_loader(settings.but(num_workers=0), batch_size=4, state=state) as loader:
        assert loader.lanes == lanes
        assert numbered_rows(take(loader, 3)) == straight
    with pytest.raises(DataConfigError, match=rf"data.lanes: {lanes}, as the checkpoint has it, is not a multiple of"):
        byte_loader(settings, batch_size=4, state=state, dp_degree=lanes + 1)
