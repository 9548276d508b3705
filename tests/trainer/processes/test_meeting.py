"""Processes that cannot find each other say so within the time limit, with the address and who is missing."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from cistron.base import UserError
from cistron.datasets.files import machine, started
from cistron.trainer.errors import MeetingError
from cistron.trainer.processes import StopRequest, launcher_store, run_command
from cistron.trainer.processes.meeting import Seat, Wait, meet, roll_call

LIMIT = timedelta(seconds=1)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a full queue of connections drops packets there")
HOLD = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def seat(rank: int, ranks: int) -> Seat:
    """A rank of some."""
    return Seat(rank, ranks, "127.0.0.1", 29400, launcher_holds_store=True)


def call(*entries: tuple[int, int], seconds: float = 20.0, **said: str) -> list[str]:
    """The roll call of some (rank, WORLD_SIZE), each in a thread; what each ends with, "" where all is well."""
    store, ends = dist.HashStore(), [""] * len(entries)  # type: ignore[attr-defined]

    def enter(index: int, rank: int, ranks: int) -> None:
        mine = {key: value.split("/")[index] for key, value in said.items()}
        try:
            roll_call(store, seat(rank, ranks), mine, Wait(seconds))
        except (UserError, MeetingError) as error:
            ends[index] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=enter, args=(index, *entry)) for index, entry in enumerate(entries)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ends


def test_ranks_that_are_alike_meet() -> None:
    assert call((0, 3), (1, 3), (2, 3), device="cpu/cpu/cpu") == ["", "", ""]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)], ids=str)
def test_another_world_size_is_told_at_once_on_both_sides(sizes: tuple[int, int]) -> None:
    begun = time.monotonic()
    first, second = call((0, sizes[0]), (1, sizes[1]))
    assert time.monotonic() - begun < 10  # of 20
    assert first == second
    assert first.startswith("ConfigError")
    host = socket.gethostname()
    assert f"| rank 0 ({host}) | rank 1 ({host})" in first
    assert f"WORLD_SIZE | {sizes[0]}" in first


def test_a_rank_that_the_first_does_not_know_of_is_told_so() -> None:
    good, also, unknown = call((0, 2), (1, 2), (2, 3))
    assert good == also == ""
    assert "WORLD_SIZE = 3 for rank 2 on" in unknown
    assert "2 for rank 0 on" in unknown


def test_a_rank_that_does_not_come_is_named_on_all_others() -> None:
    ends = call((0, 6), (1, 6), (4, 6), seconds=0.6)
    assert {end.split(":")[0] for end in ends} == {"MeetingError"}
    assert all("3 of WORLD_SIZE = 6 ranks are there; missing: rank 2-3, 5" in end for end in ends)


def test_without_rank_0_the_others_say_that() -> None:
    (end,) = call((1, 2), seconds=0.3)
    assert "missing: rank 0" in end


def test_a_number_given_twice_is_told_on_all() -> None:
    ends = call((0, 3), (1, 3), (1, 3))
    assert all("ConfigError: RANK = 1: was given to two processes" in end for end in ends)


def rest_of_a_process(store: Any, ends: bool) -> int:
    """The number of a process that entered as rank 1 and then ended, or is there still as this one's parent."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    life_of_it = {"machine": machine(), "process": child, "started": started(child), "life": 0, "token": ""}
    store.set("rank 1", json.dumps({"host": "h", "values": {"WORLD_SIZE": "2"}, **life_of_it}))
    if ends:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return child


@pytest.mark.parametrize("ends", [True, False])
def test_a_rank_that_was_started_again_alone_takes_the_place_of_the_dead(ends: bool) -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]
    child = rest_of_a_process(store, ends)
    if ends:
        dead = store.get("rank 1")

        def come_when_it_is_replaced() -> None:  # else rank 0 would take the dead for there
            while store.get("rank 1") == dead:
                time.sleep(0.005)
            roll_call(store, seat(0, 2), {}, Wait(20.0))

        other = threading.Thread(target=come_when_it_is_replaced)
        other.start()
        roll_call(store, seat(1, 2), {}, Wait(20.0))
        other.join(30)
        assert json.loads(store.get("rank 1"))["process"] == os.getpid()
    else:
        with pytest.raises(UserError, match=f"given to two processes, {child} on h"):
            roll_call(store, seat(1, 2), {}, Wait(20.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_stop_ends_the_roll_call_of_all() -> None:
    store, told, ends = dist.HashStore(), threading.Event(), list[str]()  # type: ignore[attr-defined]

    def enter(rank: int, wait: Wait) -> None:
        with pytest.raises(MeetingError) as caught:
            roll_call(store, seat(rank, 3), {}, wait)
        ends.append(str(caught.value))

    begun = time.monotonic()
    threads = [
        threading.Thread(target=enter, args=(0, Wait(60.0))),
        threading.Thread(target=enter, args=(1, Wait(60.0, told.is_set))),
    ]
    for thread in threads:
        thread.start()
    told.set()
    for thread in threads:
        thread.join(30)
    assert time.monotonic() - begun < 20
    assert any("rank 1 on" in end and "was told to stop" in end for end in ends)
    assert len(ends) == 2


def test_a_signal_ends_the_wait_for_a_silent_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with port_of(None) as number, StopRequest() as stop:
        for name, value in {**HOLD, "MASTER_PORT": str(number)}.items():
            monkeypatch.setenv(name, value)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        begun = time.monotonic()
        with pytest.raises(MeetingError, match=r"rank 1 on .* was told to stop before it met all others at MASTER_ADDR"):
            meet(timedelta(seconds=60), stop)
        assert time.monotonic() - begun < 20
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # which is ignored after a stop


def test_the_missing_are_not_looked_for_at_every_poll() -> None:
    asked = []
    with pytest.raises(MeetingError):
        Wait(0.5).until(lambda: False, lambda: asked.append(1) or "reason")  # type: ignore[func-returns-value]
    assert len(asked) == 2  # at the begin, and at the limit


@pytest.mark.parametrize("said", [{"device": "cpu/cuda"}, {"torch": "2.13.0/2.12.0"}], ids=str)
def test_what_a_process_group_needs_is_compared_before_there_is_one(said: dict[str, str]) -> None:
    first, second = call((0, 2), (1, 2), **said)
    assert first == second
    ((key, values),) = said.items()
    assert [cell.strip() for cell in first.splitlines()[3].split("|")] == [key, *values.split("/")]


def accept(answer: bytes | None, server: socket.socket) -> None:
    """Answer every connection in the same way; None: hold it and say nothing."""
    held = []
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # the test is over
            return
        if answer is None:
            held.append(connection)
            continue
        connection.recv(64)
        connection.sendall(answer)
        connection.close()


@contextmanager
def port_of(answer: bytes | None) -> Iterator[int]:
    """A port that another program holds."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        threading.Thread(target=accept, args=(answer, server), daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def closed() -> Iterator[int]:
    """A port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@contextmanager
def dropping() -> Iterator[int]:
    """A port whose packets are dropped, as by a firewall: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(server.getsockname())
        yield server.getsockname()[1]
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize(
    ("port", "host", "reason"),
    [
        (lambda: port_of(None), "127.0.0.1", "does not answer as torch's store"),
        (lambda: port_of(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "127.0.0.1", "does not answer as torch's store"),
        (closed, "127.0.0.1", "nothing listens there"),
        pytest.param(
            dropping, "127.0.0.1", "no answer", marks=pytest.mark.skipif(sys.platform != "linux", reason="its queues")
        ),
        (closed, "no-such-host.invalid", "the name 'no-such-host.invalid' is not known"),
        (closed, "." + "x" * 70, "no answer"),
    ],
    ids=["silent", "http", "nothing", "dropped", "unknown name", "no name"],
)
def test_an_address_without_a_store_is_named_in_time(
    port: Callable[[], Iterator[int]], host: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    with port() as number:  # type: ignore[attr-defined]
        for name, value in {**HOLD, "MASTER_ADDR": host, "MASTER_PORT": str(number)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(MeetingError) as caught:
            launcher_store(LIMIT)
    assert time.monotonic() - begun < 20
    said = str(caught.value)
    assert f"rank 1 on {socket.gethostname()} did not meet all others at MASTER_ADDR:MASTER_PORT = {host}:{number}" in said
    assert "within comm.timeout_seconds = 1" in said
    assert reason in said


def test_rank_0_names_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with port_of(None) as number:
        for name, value in {**HOLD, "RANK": "0", "MASTER_PORT": str(number)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            run_command(lambda: print(meet(LIMIT)))
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("stopped: rank 0 on")
    assert f"127.0.0.1:{number}" in said
    assert "in use" in said


def test_a_process_meets_twice_in_one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with closed() as number:
        for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number)}.items():
            monkeypatch.setenv(name, value)
        first = meet(timedelta(seconds=20))
        assert meet(timedelta(seconds=20))[1:] == first[1:] == (0, 1)


def test_what_is_waited_for_is_said_after_a_while(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cistron.trainer.processes.meeting.SAY_AFTER_SECONDS", 0.2)
    with closed() as number:
        for name, value in {**HOLD, "MASTER_PORT": str(number)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(MeetingError):
            launcher_store(LIMIT)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"still waits at MASTER_ADDR:MASTER_PORT = 127.0.0.1:{number}: nothing listens there" in line


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK = 3: must be 0 to 2, as WORLD_SIZE = 3"),
        ({"RANK": "-1"}, "RANK = -1: must be 0 to 1"),
        ({"RANK": "first"}, "RANK = 'first': must be a number"),
        ({"RANK": ""}, "RANK: is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': must be a number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT = 70000: must be 1 to 65535"),
        ({"MASTER_PORT": ""}, "MASTER_PORT: is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: is not set"),
    ],
    ids=str,
)
def test_variables_of_the_launcher_that_make_no_sense_are_named(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**HOLD, "MASTER_PORT": "29400", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        launcher_store(LIMIT)
    assert said in str(caught.value)
    assert os.environ["WORLD_SIZE"]
