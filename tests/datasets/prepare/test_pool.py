"""Tasks over processes: every result, every event, and an end with a name."""

import os
import signal
from pathlib import Path

import pytest
from cistron.datasets.errors import DataError, WorkerError
from cistron.datasets.prepare import Emit, run_tasks
from cistron.tests.datasets.prepare import test_pool as here  # the name by which a worker can import this module


def square(number: int, emit: Emit) -> int:
    emit(number)
    return number**2


def die(number: int, emit: Emit) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int, emit: Emit) -> int:
    raise DataError("no", file="f", record=number)


def test_all_tasks_are_done_and_their_events_heard() -> None:
    heard: list[int] = []
    assert sorted(run_tasks(here.square, range(7), 2, heard.append)) == [(number, number**2) for number in range(7)]
    assert sorted(heard) == list(range(7))


def test_a_worker_that_dies_is_named_with_its_task() -> None:
    with pytest.raises(WorkerError, match=r"worker process \d+ was killed by SIGKILL in the middle of 3;"):
        list(run_tasks(here.die, range(5), 1, print))


def test_an_error_of_the_data_arrives_as_it_was_raised() -> None:
    with pytest.raises(DataError) as caught:
        list(run_tasks(here.refuse, [4], 1, print))
    assert (caught.value.problem, caught.value.file, caught.value.record) == ("no", "f", 4)


def test_no_tasks_need_no_processes(tmp_path: Path) -> None:
    assert list(run_tasks(here.square, [], 4, print)) == []
