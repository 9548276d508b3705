"""Every part in a process of its own on every rank, with a time limit; what they found, gathered on rank 0.

The command itself never touches a device or a process group: it forks a child for each part, which joins the children
of the other ranks, and kills it when its time is over. So a hang, a crash or a poisoned device costs one part. What the
ranks must tell each other goes through the launcher's store: the lines of a part, and that all may begin the next. The
child keeps each line in a file at once, and lets faulthandler write where it stands shortly before it is killed.
"""

import faulthandler
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import TypeAdapter, ValidationError

from ...trainer.config import JobConfig
from ...trainer.processes import join, launcher_store
from .examination import Examination, in_short
from .report import Line, merged

GRACE = 20.0  # seconds a rank may be later than the others
POLL = 0.02
LINES = TypeAdapter(list[Line])


def slurm_environment() -> None:
    """Set torchrun's variables from those of `srun`, where it started this process without torchrun."""
    of = os.environ
    if "RANK" in of or int(of.get("SLURM_STEP_NUM_TASKS", "1")) < 2:  # in a batch script outside of srun there is one
        return
    hosts = ["scontrol", "show", "hostnames", of.get("SLURM_STEP_NODELIST", of["SLURM_JOB_NODELIST"])]
    of["MASTER_ADDR"] = subprocess.run(hosts, capture_output=True, text=True, check=True).stdout.split()[0]
    of["MASTER_PORT"] = str(20000 + int(of["SLURM_JOB_ID"]) % 10000)
    of["RANK"], of["WORLD_SIZE"], of["LOCAL_RANK"] = of["SLURM_PROCID"], of["SLURM_STEP_NUM_TASKS"], of["SLURM_LOCALID"]


@contextmanager
def own_folder(config: JobConfig, name: str) -> Iterator[JobConfig]:
    """Yield the job with a folder `name` inside of its dump folder in place of that, for parts to write into.

    The command outlives every part, so it removes the folder, whatever a part that was killed has left in it, and the
    parents that were not there before. Ranks enter before the first part begins, so that all see the same ones.
    """
    folder = Path(config.job.dump_folder, name)
    missing = [parent for parent in folder.parents if not os.path.exists(parent)]  # noqa: PTH110 (never raises)
    try:
        yield config.model_copy(update={"job": config.job.model_copy(update={"dump_folder": str(folder)})})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # it was never made, another rank has removed it, or somebody else writes there
                parent.rmdir()


class Ranks:
    """The commands of all ranks.

    Attributes:
        rank: of this one.
        count: of all.
        hosts: machine of every rank that reported.
        store: which all read and write; None: this is the only one.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.hosts = [""] * self.count
        self.store: Any = None
        if self.count > 1:
            store, _, _ = launcher_store(timedelta(seconds=300))
            self.store = dist.PrefixStore("doctor", store)  # type: ignore[attr-defined]  # public, as in `join`
        else:
            self.hosts = [socket.gethostname()]

    def gather(self, part: str, lines: list[Line], seconds: float) -> list[Line]:
        """Return on rank 0 the merged lines of a part; on the others, once rank 0 has them, this rank's own.

        Args:
            part: its name.
            lines: of this rank.
            seconds: within which the others must have reported.
        """
        if self.store is None:
            return lines
        mine = f"{socket.gethostname()}\n".encode() + LINES.dump_json(lines)
        self.store.set(f"{part}/{self.rank}", mine)
        done = f"{part}/done"
        if self.rank:
            self.store.wait([done], timedelta(seconds=seconds + GRACE))
            return lines
        found, end = [], time.monotonic() + seconds
        for rank in range(self.count):
            try:
                self.store.wait([f"{part}/{rank}"], timedelta(seconds=max(1.0, end - time.monotonic())))
            except dist.DistStoreError:
                host, name, limit = self.hosts[rank], f"rank {rank} did not report", f"{seconds:.0f} s"
                missing = Line(part=part, name=name, verdict="wrong", compared_with=limit, host=host, rank=rank)
                found.append([missing])
                continue
            host, text = self.store.get(f"{part}/{rank}").split(b"\n", 1)
            self.hosts[rank] = host.decode()
            found.append(LINES.validate_json(text))
        self.store.set(done, "")
        return merged(found)

    def share(self, name: str, value: Callable[[], str]) -> str:
        """Return rank 0's value on all ranks; the others do not compute it."""
        if self.store is None or self.rank == 0:
            text = value()
            if self.store is not None:
                self.store.set(name, text)
            return text
        return str(self.store.get(name).decode())

    def agree(self, status: int) -> int:
        """Return rank 0's exit status on all ranks; rank 0, which may hold the store, leaves last."""
        if self.store is None:
            return status
        if self.rank == 0:
            self.store.set("status", str(status))
            end = time.monotonic() + 5.0
            while self.store.add("left", 0) < self.count - 1 and time.monotonic() < end:
                time.sleep(POLL)
            return status
        status = int(self.store.get("status"))
        self.store.add("left", 1)
        return status


def run_part(part: str, examine: Callable[[Examination], None], config: JobConfig, limit: float) -> list[Line]:
    """Run a part in a child and return its lines on this rank, with one more where it was killed or ended badly."""
    with tempfile.TemporaryDirectory(prefix="cistron-doctor-") as name:
        folder = Path(name)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            child_main(part, examine, config, limit, folder)
        os.setpgid(child, child)
        status, end = None, time.monotonic() + limit
        try:
            while status is None and time.monotonic() < end:
                found, code = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if found else None
                time.sleep(POLL)
        finally:
            if status is None:  # too late, or the command is interrupted
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
        file = folder / "lines"
        text = file.read_text().splitlines() if file.is_file() else []
        lines = []
        for line in text:
            with suppress(ValidationError):  # the last one of a child that was killed while it wrote
                lines.append(Line.model_validate_json(line))
        problem = ""
        if status is None:
            problem = f"{limit:.0f} s (--part-seconds) were over; it was in {standing(folder / 'stack')}"
        elif status:
            problem = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if problem:
            rank, last = int(os.environ.get("RANK", "0")), f"after {lines[-1].name!r}" if lines else "before its first line"
            unfinished = {"part": part, "name": f"{part} was not finished", "verdict": "wrong", "host": socket.gethostname()}
            lines.append(Line.model_validate({**unfinished, "rank": rank, "compared_with": f"{problem}; {last}"}))
        return lines


def child_main(part: str, examine: Callable[[Examination], None], config: JobConfig, limit: float, folder: Path) -> None:
    """Run a part in this child process, and end it."""
    status = 1
    try:
        with (folder / "lines").open("a", buffering=1) as lines, (folder / "stack").open("w") as stack:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the trainer speaks there
            faulthandler.dump_traceback_later(max(0.1, limit - max(0.2, 0.02 * limit)), file=stack)
            store = None
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the command of rank 0 holds it, or torchrun
                whole, _, _ = launcher_store(timedelta(seconds=limit))
                store = dist.PrefixStore(f"part {part}", whole)  # type: ignore[attr-defined]
            world = join(config, store)
            e = Examination(part, world, config, keep=lambda line: print(line.model_dump_json(), file=lines, flush=True))
            try:
                examine(e)
                status = 0
            except Exception as error:  # any: it is what the part found
                traceback.print_exc()
                e.find(f"{part} failed", "wrong", compared_with=in_short(error))
                status = 0
            if world.layout.world_size > 1 and status == 0:
                world.sum([0])  # nobody leaves while another still talks to it
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def standing(stack: Path) -> str:
    """Return the innermost frame of the main thread that faulthandler wrote; it comes last, with the call first."""
    text = stack.read_text() if stack.is_file() else ""
    main = text.split("Current thread" if "Current thread" in text else "Thread ")[-1]
    frame = re.search(r'File "(.+)", line (\d+) in (\S+)', main)
    return f"{frame[3]} ({Path(frame[1]).name}:{frame[2]})" if frame else "an unknown place"
