"""How the processes of a run find each other: the launcher's store, and a roll call in it, within a time limit.

torch's own way has no limit that holds. Its store (torch 2.13, limit 4 s) hangs for more than 60 s where a name does
not resolve, packets are dropped, or the port is held by a program that says nothing; and two ranks with another
WORLD_SIZE wait for each other. So a thread opens the store, which is left behind where it hangs, and then each rank
enters its name. Rank 0 reads all of them and writes a verdict, which the others poll for.
"""

import itertools
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ...datasets.files import machine, started
from ..errors import ConfigError, MeetingError
from .agreement import differences, in_words
from .layout import launch_number, world_size
from .restarts import life
from .world import in_thread

T = TypeVar("T")
REASON_SECONDS = 1.0  # for which a reason is kept: to find it, each rank is asked for
SAY_AFTER_SECONDS = 10.0  # of waiting, for what
HEARD_SECONDS = 3.0  # that rank 0, whose process may hold the store, stays for the others to read a bad verdict
POLL_SECONDS = (0.005, 0.25)  # first and longest; a rank's own wait grows by a third each time
VERDICT = "verdict"
_meetings = itertools.count()  # of this process: a second training in it must not find the names of the first


@dataclass(frozen=True)
class Seat:
    """What the launcher tells a process by environment variables."""

    rank: int
    ranks: int
    host: str
    port: int
    launcher_holds_store: bool

    @classmethod
    def of_environment(cls) -> "Seat":
        """Read it. Raises ConfigError, with the variable, for what is missing or makes no sense."""
        rank, ranks, port = launch_number("RANK"), world_size(), launch_number("MASTER_PORT")
        if not 0 <= rank < ranks:
            raise ConfigError(f"RANK = {rank}: must be 0 to {ranks - 1}, as WORLD_SIZE = {ranks}")
        if not 0 < port < 2**16:
            raise ConfigError(f"MASTER_PORT = {port}: must be 1 to {2**16 - 1}")
        if not (host := os.environ.get("MASTER_ADDR", "")):
            raise ConfigError("MASTER_ADDR: is not set; it must name the machine of rank 0 (torchrun sets it)")
        return cls(rank, ranks, host, port, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True))

    def __str__(self) -> str:
        """Return the address, as messages name it."""
        return f"MASTER_ADDR:MASTER_PORT = {self.host}:{self.port}"


class Wait:
    """A time limit, a stop that may be requested before it, and what is waited for."""

    def __init__(self, seconds: float, stop: Callable[[], bool] = bool) -> None:
        self.deadline = time.monotonic() + seconds
        self.stop = stop
        self.reason = ""

    @property
    def left(self) -> float:
        """Seconds until the limit; 0 after it."""
        return max(0.0, self.deadline - time.monotonic())

    def until(self, done: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Return once `done()`. Raises MeetingError with the reason after the limit, and at a stop."""
        pause, longest = POLL_SECONDS
        found = -REASON_SECONDS
        while not done():
            ends = not self.left or self.stop()
            if ends or time.monotonic() - found > REASON_SECONDS:
                self.reason, found = reason(), time.monotonic()
            if ends:
                raise MeetingError(self.reason)
            time.sleep(min(pause, self.left))
            pause = min(pause * 4 / 3, longest)


def outcome(future: "Future[T]", wait: Wait, say: Callable[[str], None]) -> T:
    """Return what work in a thread, in which torch may hang, results in.

    Args:
        future: of the work, which ends by itself at the limit unless it hangs.
        wait: its time limit.
        say: is told after a while what is waited for.

    Raises:
        MeetingError: it did not end in time. What the work raises is raised too.
    """
    says = time.monotonic() + SAY_AFTER_SECONDS
    while not future.done() and wait.left and not wait.stop():
        futures.wait([future], min(POLL_SECONDS[1], wait.left))
        if not future.done() and wait.left and time.monotonic() > says:
            says = wait.deadline
            say(wait.reason)
    futures.wait([future], 0.5)  # the thread knows best what is missing
    if not future.done():
        raise MeetingError(wait.reason)
    return future.result()


def launcher_store(timeout: timedelta) -> tuple[Any, int, int]:
    """Return the store in which ranks find each other's addresses, this rank, and the number of ranks.

    torchrun keeps one store over the lives of its ranks, in which those of `--max-restarts` would find the addresses of
    the dead (github.com/pytorch/pytorch/issues/135712). On one machine its count of restarts tells lives apart;
    machines may differ in theirs, and need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a new store for each life.

    Args:
        timeout: in which the store must answer, also later.

    Raises:
        ConfigError: the launcher's environment variables make no sense.
        MeetingError: the store cannot be reached in time; with the address, and how far it came.
    """
    seat = Seat.of_environment()
    return in_time(seat, timeout, lambda wait: open_store(seat, timeout, wait)), seat.rank, seat.ranks


def meet(timeout: timedelta, stop: Callable[[], bool] = bool, **said: str) -> tuple[Any, int, int]:
    """Return what `launcher_store` does, once all ranks are there and have said the same.

    Args:
        timeout: in which all must have come.
        stop: whether this process was told to stop, which ends the wait.
        said: what a process group needs to be alike, by name; WORLD_SIZE is added.

    Raises:
        ConfigError, MeetingError: as `launcher_store`; also where a rank is missing, there twice, or differs.
    """
    seat = Seat.of_environment()

    def enter(wait: Wait) -> Any:
        store = dist.PrefixStore(f"meeting {next(_meetings)}", open_store(seat, timeout, wait))  # type: ignore[attr-defined]
        roll_call(store, seat, said, wait)
        return store

    return in_time(seat, timeout, enter, stop), seat.rank, seat.ranks


def in_time(seat: Seat, timeout: timedelta, work: Callable[[Wait], T], stop: Callable[[], bool] = bool) -> T:
    """Return what work in a thread returns. Raises MeetingError, with the address, at the limit and at a stop."""
    limit = f"comm.timeout_seconds = {timeout.total_seconds():g}"
    who = f"rank {seat.rank} on {socket.gethostname()}"

    def say(reason: str) -> None:
        print(f"[{who}] still waits at {seat}: {reason} ({limit})", file=sys.stderr, flush=True)

    wait = Wait(timeout.total_seconds(), stop)
    try:
        return outcome(in_thread(lambda: work(wait), "cistron-meeting"), wait, say)
    except MeetingError as error:
        if stop():
            raise MeetingError(f"{who} was told to stop before it met all others at {seat}: {error}") from None
        raise MeetingError(f"{who} did not meet all others at {seat} within {limit}: {error}") from None


def open_store(seat: Seat, timeout: timedelta, wait: Wait) -> Any:
    """Open torchrun's store, or that of rank 0, which rank 0 makes itself. Raises MeetingError."""
    holds = seat.rank == 0 and not seat.launcher_holds_store
    if not holds:
        reach(seat, wait)
    wait.reason = (
        "the store made here does not answer at this address: is it that of another machine?"
        if holds
        else "something listens there, but does not answer as torch's store: another program has the port, or rank 0 is frozen"
    )
    try:
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]  # public, as in `join`
            seat.host, seat.port, None, holds, timedelta(seconds=max(1.0, wait.left)), wait_for_workers=False, multi_tenant=True
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise MeetingError(str(error).split("\n")[0] if holds else wait.reason) from None
    store.set_timeout(timeout)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"life {life()}", store)  # type: ignore[attr-defined]  # public, as in `join`
    return store


def reach(seat: Seat, wait: Wait) -> None:
    """Return once something listens at the address, which may take as long as rank 0 needs to start."""
    found = ""

    def listens() -> bool:
        nonlocal found
        try:
            socket.create_connection((seat.host, seat.port), timeout=max(0.1, wait.left)).close()
        except socket.gaierror as error:
            found = f"the name {seat.host!r} is not known on this machine ({error.strerror})"
        except ConnectionRefusedError:
            found = "nothing listens there: rank 0 is not up yet, or the address is not its"
        except (OSError, UnicodeError) as error:  # UnicodeError: no host has such a name
            found = f"no answer ({error}): the machine is down, its network is another, or a firewall drops packets"
        else:
            return True
        return False

    wait.reason = f"the name {seat.host!r} is looked up, or the machine does not answer"
    wait.until(listens, lambda: found)


def roll_call(store: Any, seat: Seat, said: Mapping[str, str], wait: Wait) -> None:
    """Return once all ranks are there and say the same; every rank calls it once in a store.

    Args:
        store: empty, and the same for all.
        seat: of this rank.
        said: what must be alike.
        wait: the time limit.

    Raises:
        ConfigError: ranks differ, or one number was given to two processes; on all that are there.
        MeetingError: a rank did not come in time.
    """
    host, values = socket.gethostname(), {"WORLD_SIZE": str(seat.ranks), **said}
    pid = os.getpid()
    process = {"process": pid, "machine": machine(), "started": started(pid)}
    entry = {"host": host, "values": values, **process, "life": life(), "token": secrets.token_hex(8)}
    mine = json.dumps(entry)  # with the token, as containers may share name and number
    found = store.compare_set(name_of(seat.rank), "", mine).decode()
    if found != mine and is_of_the_dead(json.loads(found)) and not store.check([VERDICT]):  # a supervisor's restart
        found = store.compare_set(name_of(seat.rank), found, mine).decode()
    if found != mine:
        other = json.loads(found)
        both = f"{other['process']} on {other['host']} and {pid} on {host}"
        message = f"RANK = {seat.rank}: was given to two processes, {both}"
        if other["life"] != life():
            message += (
                "; the first is of an earlier life of torchrun: with several machines set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
            )
        store.compare_set(VERDICT, "", json.dumps({"mistake": message}))
        raise ConfigError(message)
    if seat.rank == 0:
        judge(store, seat.ranks, wait)
    try:
        wait.until(
            lambda: bool(store.check([VERDICT])),
            lambda: missing(store, seat.ranks) if not wait.left else "other ranks" if store.check([name_of(0)]) else "rank 0",
        )
    except MeetingError:
        if wait.stop():
            store.compare_set(VERDICT, "", json.dumps({"late": f"rank {seat.rank} on {host} was told to stop"}))
        raise
    verdict = json.loads(store.get(VERDICT))
    store.add("heard", 1)
    if seat.rank == 0 and "ranks" not in verdict:
        leave_last(store, seat.ranks)
    if late := verdict.get("late"):
        raise MeetingError(late)
    if mistake := verdict.get("mistake"):
        raise ConfigError(mistake)
    if verdict["ranks"] != seat.ranks:  # a rank that rank 0 does not know of
        theirs = f"{verdict['ranks']} for rank 0 on {verdict['host']}"
        raise ConfigError(f"WORLD_SIZE = {seat.ranks} for rank {seat.rank} on {host}, {theirs}")


def is_of_the_dead(entry: Mapping[str, Any]) -> bool:
    """Return whether the process that made an entry of this life, on this machine, is gone."""
    here = entry["life"] == life() and entry["machine"] == machine() != ""
    return here and bool(started(entry["process"]) != entry["started"])


def judge(store: Any, ranks: int, wait: Wait) -> None:
    """Read on rank 0 what each rank says as it comes, and write the verdict."""
    here: dict[int, tuple[str, dict[str, str]]] = {}
    mistake = ""

    def decided() -> bool:
        nonlocal mistake
        for rank in range(ranks):
            if rank not in here and store.check([name_of(rank)]):
                entry = json.loads(store.get(name_of(rank)))
                here[rank] = entry["host"], entry["values"]
        keys = [key for key in here[0][1] if len({values[key] for _, values in here.values()}) > 1]
        if keys:
            table = differences(here, keys)
            mistake = "\n".join(["the processes were not started alike:", "", *table, "", "start all of them in the same way"])
        return bool(keys) or len(here) == ranks or store.check([VERDICT])

    try:
        wait.until(decided, lambda: missing(store, ranks))
    except MeetingError as error:
        late = f"rank 0 was told to stop; {error}" if wait.stop() else str(error)
        store.compare_set(VERDICT, "", json.dumps({"late": late}))
        return
    good = {"ranks": ranks, "host": socket.gethostname()}
    store.compare_set(VERDICT, "", json.dumps({"mistake": mistake} if mistake else good))


def name_of(rank: int) -> str:
    """Return the key under which a rank enters its name."""
    return f"rank {rank}"


def missing(store: Any, ranks: int) -> str:
    """Return which ranks are not there."""
    absent = [rank for rank in range(ranks) if not store.check([name_of(rank)])]
    if not absent:
        return "rank 0 is there, but does not answer"
    return f"{ranks - len(absent)} of WORLD_SIZE = {ranks} ranks are there; missing: rank {in_words(absent)}"


def leave_last(store: Any, ranks: int) -> None:
    """Wait on rank 0 until the others that are there know the verdict, as the store may end with this process."""
    here = sum(store.check([name_of(rank)]) for rank in range(ranks))
    end = time.monotonic() + HEARD_SECONDS
    while store.add("heard", 0) < here and time.monotonic() < end:
        time.sleep(0.02)
