"""Hosts with data of their own: contents decide, not folders and times, and who differs is told before a step."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cistron.base import UserError
from cistron.datasets.files import inventory
from cistron.tests.helpers.corpora import words, write_jsonl
from cistron.tests.helpers.jobs import write_job, write_shards
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

SOURCES = """
[[data.sources]]
name = "shards"
format = "tokens"
paths = ["FOLDER/shards"]

[[validation.sources]]
name = "held out"
format = "jsonl"
paths = ["FOLDER/validation.jsonl.txt"]
"""


def write_corpus(folder: Path) -> None:
    """Write what a host has: three files of lines, two token shards, and a file for validation."""
    (folder / "corpus").mkdir(parents=True)
    for number in range(3):
        write_jsonl(folder / "corpus" / f"{number}.jsonl", words(60, number))
    write_shards(folder / "shards")
    write_jsonl(folder / "validation.jsonl.txt", words(9))


def opened(config_path: str, root: str, cases: list[str]) -> list[tuple[str, object]]:
    """Open the data of each case, of which rank R has `root`/case/R; return the message and what decides the rows."""
    found: list[tuple[str, object]] = []
    for case in cases:
        folder = Path(root) / case / os.environ["RANK"]
        job = Path(root) / case / f"{os.environ['RANK']}.toml"
        job.write_text((Path(config_path).read_text() + SOURCES).replace("FOLDER", str(folder)))
        options = (
            "--eval.extrapolation.enable" if case == "long documents" else "--validation.enable",
            "true",
            "--job.dump_folder",
            f"{root}/{case}/run",
        )
        config, _ = load_config(["--config", str(job), *options])
        try:
            trainer = Trainer(config, join(config), StopRequest())
        except UserError as error:
            found.append((str(error), None))
        else:
            found.append(("", trainer.data.loader.state().config))
            trainer.close()
    return found


def cut(folder: Path) -> None:
    file = folder / "corpus" / "1.jsonl"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 - 3])


def shuffled(folder: Path) -> None:
    file = folder / "corpus" / "1.jsonl"
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))


def other_shard(folder: Path) -> None:
    write_shards(folder / "shards", shards=1, weighted=True)


def missing(folder: Path) -> None:
    (folder / "corpus" / "2.jsonl").unlink()
    (folder / "corpus" / "0.jsonl").write_bytes((folder / "corpus" / "0.jsonl").read_bytes() + b"\n")


def absent(folder: Path) -> None:
    (folder / "validation.jsonl.txt").unlink()


def other_validation(folder: Path) -> None:
    write_jsonl(folder / "validation.jsonl.txt", words(10))


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "touched": (lambda folder: os.utime(folder / "corpus" / "0.jsonl", ns=(0, 0)), []),
    "cut": (cut, ["data.sources.words: ", "/1.jsonl: ", " bytes, and ", " on rank 0"]),
    "shuffled": (shuffled, ["data.sources.words: ", "/1.jsonl: checksum '"]),
    "shard": (other_shard, ["data.sources.shards: ", "/shards/part-0.json: "]),
    "missing": (missing, ["data.sources.words: ", "/0/corpus/2.jsonl: missing", "/1/corpus/0.jsonl: "]),
    "validation": (other_validation, ["validation.sources.held out: ", "/1/validation.jsonl.txt: "]),
    "long documents": (other_validation, ["validation.sources.held out: ", "/1/validation.jsonl.txt: "]),
    "absent": (absent, ["there is no such file", "[found by rank 1 (", "), 1 in all]"]),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, object]]]:
    """What each rank says in each case."""
    root = tmp_path_factory.mktemp("hosts")
    write_corpus(root / "host")
    for case, (change, _) in CASES.items():
        for rank in range(2):
            shutil.copytree(root / "host", root / case / str(rank), copy_function=shutil.copyfile)
        change(root / case / "1")
    job = write_job(root)
    job.write_text(job.read_text().replace(f"{root}/corpus", "FOLDER/corpus"))
    ranks = run_on_ranks(opened, 2, str(job), str(root), list(CASES))
    return {case: [rank[place] for rank in ranks] for place, case in enumerate(CASES)}


def test_copies_with_folders_and_times_of_their_own_are_the_same_data(told: dict[str, list[tuple[str, object]]]) -> None:
    (message, place), (other_message, other_place) = told["touched"]
    assert message == other_message == ""
    assert place == other_place, "which a save compares"


@pytest.mark.parametrize("case", [case for case in CASES if case != "touched"])
def test_ranks_whose_files_differ_are_told_with_the_files(case: str, told: dict[str, list[tuple[str, object]]]) -> None:
    (message, _), (other, _) = told[case]
    assert message == other, "on every rank"
    assert "rank 1 (" in message
    for part in CASES[case][1]:
        assert part in message
    if case not in ("absent", "missing"):
        assert sum(line.count(": ") >= 2 for line in message.splitlines()[2:]) == 1, "files that are the same are not named"


def opened_late(config_path: str) -> float:
    """Open the data, of which rank 1 reads each file for longer than a collective may take; return the seconds."""
    config, _ = load_config(["--config", config_path, "--comm.timeout_seconds", "3"])
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patches:
        if os.environ["RANK"] == "1":
            stamp = inventory._stamped
            patches.setattr(inventory, "_stamped", lambda file, whole: (time.sleep(5), stamp(file, whole))[1])
        Trainer(config, join(config), StopRequest()).close()
    return time.monotonic() - began


def test_a_rank_whose_disk_is_slow_is_waited_for_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    assert min(run_on_ranks(opened_late, 2, str(write_job(tmp_path, steps=1)))) > 5
