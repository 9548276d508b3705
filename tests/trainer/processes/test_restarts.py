"""Under torchrun's `--max-restarts` a user's mistake is examined and told once; one that was mended is not refused."""

import os
import pickle
import time
from pathlib import Path

import pytest
from cistron.base import UserError
from cistron.datasets.errors import DataError
from cistron.trainer.errors import ConfigError, MeetingError
from cistron.trainer.processes import run_command
from cistron.trainer.train import run
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

AGAIN = "error: the mistake above is not tried again so soon (torchrun's restart {})\n"


class Launch:
    """One torchrun, whose agent makes the folders of its lives as torch does it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, restarts: int = 5) -> None:
        self.logs, self.monkeypatch, self.restarts = DefaultLogsSpecs(log_dir=str(folder)), monkeypatch, restarts
        self.lives = 0

    def live(self, error: Exception | None = None, rank: int = 0) -> tuple[bool, int]:
        """One rank in one more life; returns whether it began its work, and its exit status."""
        of = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": str(self.lives), "LOCAL_RANK": str(rank)}
        self.logs.reify(variables := {0: dict(of), 1: dict(of)})
        for name, value in {**variables[rank], "TORCHELASTIC_MAX_RESTARTS": str(self.restarts)}.items():
            self.monkeypatch.setenv(name, value)
        self.lives += 1
        begun = False

        def work() -> None:
            nonlocal begun
            begun = True
            if error:
                raise error

        try:
            run_command(work)
        except SystemExit as ending:
            return begun, int(str(ending.code))
        return begun, 0


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launch that may restart."""
    return Launch(tmp_path, monkeypatch)


def later(launch: Launch, seconds: float) -> None:
    """Let time go by for the notes of a launch."""
    for note in Path(launch.logs.root_log_dir).rglob("cistron_mistake-*"):
        os.utime(note, (time.time() - seconds,) * 2)


def test_a_mistake_in_the_job_is_examined_and_told_once(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ConfigError("training.seq_len = 0: must be at least 2")
    assert [launch.live(wrong) for _ in range(4)] == [(True, 2), *[(False, 2)] * 3]
    assert capsys.readouterr().err == f"error: {wrong}\n" + "".join(map(AGAIN.format, (1, 2, 3)))


def test_the_other_ranks_of_a_machine_say_nothing(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch.live(ConfigError("wrong"))
    capsys.readouterr()
    assert launch.live(rank=1) == (False, 2)
    assert capsys.readouterr().err == ""


def test_a_mistake_that_may_have_been_mended_is_examined_again(launch: Launch) -> None:
    launch.live(ConfigError("wrong"))
    later(launch, 61)
    assert launch.live() == (True, 0)


def test_another_launch_knows_nothing_of_it(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch.live(ConfigError("wrong"))
    other = Launch(tmp_path, monkeypatch)
    other.lives = 1
    assert other.live() == (True, 0)


def test_what_is_wrong_with_data_is_tried_once_more(launch: Launch) -> None:
    gone = DataError("cannot be opened", file="corpus.jsonl")
    assert [launch.live(gone) for _ in range(3)] == [(True, 2), (True, 2), (False, 2)]


def test_two_ranks_of_one_life_are_one_mistake(launch: Launch) -> None:
    gone = DataError("cannot be opened", file="corpus.jsonl")
    launch.live(gone)
    launch.lives = 0
    launch.live(gone, rank=1)
    assert launch.live() == (True, 0)


def in_one_life(launch: Launch, errors: tuple[Exception, Exception]) -> list[bool]:
    """Both ranks of one more life; returns whether each began its work."""
    begun = []
    for rank, error in enumerate(errors):
        begun.append(launch.live(error, rank)[0])
        launch.lives -= rank == 0
    return begun


def test_each_rank_of_a_machine_has_a_note_of_its_own(launch: Launch) -> None:
    errors = DataError("cannot be opened", file="of rank 0"), DataError("cannot be opened", file="of rank 1")
    assert [in_one_life(launch, errors) for _ in range(3)] == [[True, True], [True, True], [False, False]]


@pytest.mark.parametrize("text", ["[1]", "no JSON", '"x"'])
def test_a_note_that_is_damaged_is_none(text: str, launch: Launch) -> None:
    launch.live(ConfigError("wrong"))
    for note in Path(launch.logs.root_log_dir).rglob("cistron_mistake-*"):
        note.write_text(text)
    assert launch.live(ConfigError("wrong")) == (True, 2)


def because_of_a_disk() -> ConfigError:
    """A mistake that was made of an OSError, and went through pickle to another rank."""
    try:
        Path("/no/such/folder").mkdir()
    except OSError as error:
        return pickle.loads(pickle.dumps(ConfigError(f"job.dump_folder: {error.strerror}")))  # type: ignore[no-any-return]
    raise AssertionError


def because_of_a_tokenizer(tmp_path: Path) -> ConfigError:
    """What a job is refused with whose tokenizer's file is not there."""
    with pytest.raises(ConfigError, match=r"there is no tokenizer\.json") as caught:
        run(["--tokenizer.kind", "hf", "--tokenizer.path", str(tmp_path / "mount"), "--training.steps", "1"])
    return caught.value


def because_of_a_toml(tmp_path: Path) -> ConfigError:
    """What a job is refused with whose TOML is not there."""
    with pytest.raises(ConfigError) as caught:
        run(["--config", str(tmp_path / "mount" / "job.toml")])
    return caught.value


def test_what_a_disk_or_a_network_causes_is_tried_once_more(launch: Launch, tmp_path: Path) -> None:
    for error in (because_of_a_disk(), because_of_a_tokenizer(tmp_path), because_of_a_toml(tmp_path)):
        launch.live(error)
        assert launch.live(error) == (True, 2)
        assert launch.live(error) == (False, 2)
        for note in Path(launch.logs.root_log_dir).rglob("cistron_mistake-*"):
            note.unlink()


def test_other_mistakes_in_two_lives_are_two(launch: Launch) -> None:
    launch.live(UserError("step 7: not saved"))
    launch.live(UserError("step 9: not saved"))
    assert launch.live() == (True, 0)


@pytest.mark.parametrize("error", [MeetingError("nobody came"), KeyboardInterrupt()], ids=str)
def test_other_ends_are_restarted(error: Exception, launch: Launch) -> None:
    launch.live(error)
    assert launch.live() == (True, 0)


def test_without_restarts_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Launch(tmp_path, monkeypatch, restarts=0).live(ConfigError("wrong"))
    assert not list(tmp_path.rglob("cistron_mistake*"))
