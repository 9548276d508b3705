"""A folder that one process at a time writes to, on any file system and in any object store.

Whoever wants a folder lists the claims in it, small files of a name of their own; where there is none he writes one,
and lists again. Alone, he holds the folder. Of two that write at the same time at least one sees the other, as each
lists after it has written, so that never do both find themselves alone; the first by name stays, the other withdraws.
This needs no exclusive creation, no rename and no flock, which network file systems and object stores promise to
different degrees: flock holds between hosts on NFSv4, on Lustre only where it is mounted for that.

A claim counts while its process lives. On one machine the kernel tells: there is a process of that number, and it began
at that time. Of another machine, or a container with process numbers of its own, a heartbeat tells: a thread of the
holder renews its claim every `BEAT_SECONDS`, whatever the main thread does. A claim that does not change for
`WATCH_SECONDS` of the watcher's own clock is dead; two clocks are never compared. A process that stood still for so
long (SIGSTOP, a suspended machine) and lost its claim ends as soon as it wakes, before it can mix two runs.
"""

import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InUseError
from .redirects import file_system

BEAT_SECONDS = 5.0
WATCH_SECONDS = 30.0
POLL_SECONDS = 0.05
CLAIM_BYTES = 4096

Plain = Annotated[str, Field(pattern=r"^[ -~]{0,100}$")]  # which a terminal shows as it is


class Claim(BaseModel):
    """What a claim says of its process.

    Attributes:
        host: for people.
        machine: boot and process namespace, within which process numbers mean something; empty where unknown.
        pid: process number.
        started: when the process began, in the kernel's ticks since boot; 0 where unknown.
        since: when the claim was made, for people.
        held: whether it has the folder, or still wants it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    host: Plain
    machine: Plain
    pid: int
    started: int
    since: Plain
    held: bool

    @classmethod
    def mine(cls) -> "Claim":
        """Return that of this process."""
        pid, now = os.getpid(), datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(host=socket.gethostname()[:100], machine=machine(), pid=pid, started=started(pid), since=now, held=False)

    @classmethod
    def read(cls, text: bytes) -> "Claim":
        """Return what a claim says; of one that is damaged nothing but that it is there."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return cls(host="unknown", machine="", pid=0, started=0, since="an unknown time", held=True)

    def __str__(self) -> str:
        """Return a text for people."""
        return f"host {self.host!r}, process {self.pid}, since {self.since}"


class Lock:
    """One folder, or one name in it, against other processes that want the same: a context manager.

    Folders that are missing are made. At the end those that are still empty are removed with the claim.

    Args:
        folder: path or fsspec URL.
        name: what the claims are called; several locks may be in one folder.
        advice: ends the message of a refusal.
        stop: polled while the claim of another machine is watched; once true, that ends.

    Raises:
        InUseError: a process that lives has it, or may as a stop was requested; names host, process and time.
        OSError: the folder cannot be read or written.
    """

    def __init__(
        self, folder: "str | os.PathLike[str]", name: str = "lock", advice: str = "", stop: Callable[[], bool] = bool
    ) -> None:
        self.place, self.advice, self.stop = _place(os.fspath(folder)), advice, stop
        self.pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{16}}")
        self.name = f"{name}-{secrets.token_hex(8)}"
        self.claim = Claim.mine()
        self.present = False  # whether the claim is there, as far as this process knows
        self.changing = threading.Lock()  # so that what is withdrawn is not renewed
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.renew, name="cistron-lock", daemon=True)

    def __enter__(self) -> None:
        """Take the folder, or leave no claim in it where it is in use."""
        try:
            self.take()
        except BaseException:
            self.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the folder go, whatever ended the block."""
        self.release()

    def take(self) -> None:
        """Claim until this is the only claim of a process that lives."""
        while True:
            others = self.others()
            self.refuse(others)
            if not self.present and not others:
                self.place.make()
                with suppress(FileNotFoundError):  # the empty folder was removed by the last who wanted it
                    self.write(held=False)
                continue  # and look again, now that others can see it
            if self.present and not others:
                break
            if self.present and min(others) < self.name:
                self.withdraw()
            time.sleep(POLL_SECONDS)
        self.write(held=True)
        self.refuse(self.others())  # which there are if this process stood still since it looked last

    def refuse(self, others: dict[str, Claim]) -> None:
        """Raise InUseError where one of the claims has the folder."""
        if holder := next((claim for claim in others.values() if claim.held), None):
            raise InUseError(f"{self.place}: in use: {holder} writes to it{self.advice}")

    def write(self, held: bool) -> None:
        """Write the claim, wanted or held, and have the thread renew it from then on."""
        with self.changing:
            self.claim = self.claim.model_copy(update={"held": held})
            self.place.write(self.name, self.claim)
            self.present = True
            if not self.thread.ident:
                self.thread.start()

    def withdraw(self) -> None:
        """Remove the claim, and leave the folder to the others who want it."""
        with self.changing:
            if self.present:
                self.place.delete(self.name)
            self.present = False

    def release(self) -> None:
        """Let the folder go, and leave nothing of this lock in it."""
        self.ended.set()
        with suppress(Exception):  # a disk that is gone, whatever a store says: the end of the process says the same
            self.withdraw()
        self.place.tidy()

    def others(self) -> dict[str, Claim]:
        """Return the claims of other processes that live, by name; those of the dead are removed."""
        found: dict[str, Claim] = {}
        for name in self.place.names():
            if name == self.name or not self.pattern.fullmatch(name) or (text := self.place.read(name)) is None:
                continue
            claim = Claim.read(text[0])
            if claim.machine and claim.machine == self.claim.machine:
                lives = 0 < claim.started == started(claim.pid)
            else:
                text = self.watch(name, text, claim)
                lives, claim = text is not None, Claim.read(text[0]) if text else claim
            if lives:
                found[name] = claim
            else:
                self.place.delete(name)
        return found

    def watch(self, name: str, seen: "Pulse", claim: Claim) -> "Pulse | None":
        """Return what a claim says once it changes; None where it goes, or does not change in `WATCH_SECONDS`."""
        until, told = time.monotonic() + WATCH_SECONDS, time.monotonic() + 2 * BEAT_SECONDS
        while time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 10)
            now = self.place.read(name)
            if now != seen:
                return now
            if self.stop():
                raise InUseError(f"{self.place}: told to stop while watching whether {claim} still writes to it")
            if told and time.monotonic() > told:
                told = 0.0
                say(f"{self.place}: {claim} had it, and gives no sign; watching for {WATCH_SECONDS:.0f} s")
        return None

    def renew(self) -> None:
        """Renew the claim until the end: the body of the thread."""
        warned = False
        while not self.ended.wait(BEAT_SECONDS):
            try:
                with self.changing:
                    if self.present and not self.place.renew(self.name, self.claim):
                        self.restore()
                warned = False
            except Exception as error:  # whatever a store says
                if not warned:
                    say(f"warning: {self.place}: the lock could not be renewed: {type(error).__name__}: {error}")
                warned = True

    def restore(self) -> None:
        """Write the claim anew if somebody deleted it; end the process where another one has the folder now."""
        names = [name for name in self.place.names() if self.pattern.fullmatch(name) and name != self.name]
        texts = [text for name in names if (text := self.place.read(name))]
        if texts and not self.claim.held:
            self.present = False
        elif texts:
            what = f"this process stood still for so long that {Claim.read(texts[0][0])} took it over"
            say(f"stopped: {self.place}: {what}; nothing more is written to it here")
            os._exit(1)
        elif self.place.exists():
            self.place.write(self.name, self.claim)


Pulse = tuple[bytes, int]  # what a claim says, and when it was changed by the clock of its file system


class _Disk:
    """A folder of claims on a disk, or a mount of one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = [folder for folder in (path, *path.parents) if not folder.exists()]

    def __str__(self) -> str:
        return str(self.path)

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        return self.path.is_dir()

    def tidy(self) -> None:
        with suppress(OSError):  # the first that is not empty
            for folder in self.made:
                folder.rmdir()

    def names(self) -> list[str]:
        try:
            return os.listdir(self.path)  # noqa: PTH208 (names)
        except FileNotFoundError:
            return []

    def read(self, name: str) -> Pulse | None:
        try:
            with (self.path / name).open("rb") as file:  # opening asks the server, where a stat may be the cache's
                return file.read(CLAIM_BYTES), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def write(self, name: str, claim: Claim) -> None:
        unfinished = self.path / f".{name}"
        try:
            unfinished.write_text(claim.model_dump_json())
            unfinished.replace(self.path / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def renew(self, name: str, claim: Claim) -> bool:
        try:
            os.utime(self.path / name)  # which a full disk allows
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


class _Store:
    """A folder of claims in an object store: an object is there whole, and a listing has all that were written."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.filesystem: Any
        self.filesystem, self.path = file_system(url)
        self.beats = 0

    def __str__(self) -> str:
        return self.url

    def make(self) -> None:
        self.filesystem.makedirs(self.path, exist_ok=True)

    def exists(self) -> bool:
        return True

    def tidy(self) -> None:
        """Leave it: a store has folders only where there are objects."""

    def names(self) -> list[str]:
        self.filesystem.invalidate_cache()
        try:
            return [path.rstrip("/").rsplit("/", 1)[-1] for path in self.filesystem.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> Pulse | None:
        try:
            text: bytes = self.filesystem.cat_file(f"{self.path}/{name}", end=CLAIM_BYTES)
        except FileNotFoundError:
            return None
        return text.rstrip(), len(text)

    def write(self, name: str, claim: Claim) -> None:
        self.filesystem.pipe_file(f"{self.path}/{name}", claim.model_dump_json().encode() + b" " * self.beats)

    def renew(self, name: str, claim: Claim) -> bool:
        if self.read(name) is None:
            return False
        self.beats = (self.beats + 1) % 100
        self.write(name, claim)
        return True

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.path}/{name}")


def _place(folder: str) -> _Disk | _Store:
    return _Store(folder) if "://" in folder else _Disk(Path(folder))


def machine() -> str:
    """Return this boot of this machine and the namespace of its process numbers; empty where they are not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: int) -> int:
    """Return when a process of this machine began, in ticks since boot; 0: there is none, or it is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(fields[18])


def say(message: str) -> None:
    """Print a message on stderr, where there still is one."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)
