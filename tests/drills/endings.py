"""What else may happen to a run, on one process: reports damaged or failing, signals, streams gone, a second start.

Each case takes a folder to work in and the curve of a run that nothing happened to. It returns what was seen,
and raises Failed where a guarantee of docs/checkpoints.md does not hold.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import drills

STEPS, INTERVAL = 60, 10
PATIENCE = 240.0  # seconds for all of a run
FULL = Path("/dev/full")
PLUGIN = """
from cistron.trainer.config import SINKS
from cistron.trainer.metrics import Sink

@SINKS.add("of_the_drill", says="steps, in drill.txt; fails at 21 to 30")
class OfTheDrill(Sink):
    def __init__(self, folder, config, start_step):
        self.file = (folder / "drill.txt").open("a")

    def write(self, record):
        if 21 <= record.step <= 30:
            raise RuntimeError("no service")
        print(record.step, file=self.file, flush=True)
"""
Curve = dict[int, tuple[str, str, str]]


class Failed(Exception):
    """A guarantee does not hold; the message says which."""


def hold(holds: object, what: str) -> None:
    """Raise Failed unless something holds."""
    if not holds:
        raise Failed(what)


class Run:
    """A job on one process, from its start to its end.

    Args:
        folder: to work in; the job is `<folder>/<name>.toml`.
        name: of the job.
        overrides: further arguments.
        stdout: a file descriptor; None: the log, where stderr goes too.
    """

    def __init__(self, folder: Path, name: str, *overrides: str, stdout: int | None = None, stderr: int | None = None) -> None:
        self.config = drills.write_job(folder, name, steps=STEPS, interval=INTERVAL, timeout=60)
        self.run, self.log = self.config.with_suffix(""), self.config.with_suffix(".log")
        self.metrics = self.run / "metrics.jsonl"
        command = [sys.executable, "-m", "cistron.trainer.train", "--config", str(self.config), *overrides]
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        hangups = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run would leave it ignored, as under nohup
        with self.log.open("ab") as log:
            out, err = log if stdout is None else stdout, log if stderr is None else stderr
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        signal.signal(signal.SIGHUP, hangups)

    def wait_for_step(self, step: int) -> None:
        """Block until a step is recorded."""
        deadline = time.monotonic() + PATIENCE
        while drills.last_step(self.run) < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise Failed(f"the run did not come to step {step}")
            time.sleep(0.005)

    def end(self, status: int = 0) -> str:
        """Wait for the end, which must have this status; returns what the log has."""
        try:
            found = self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failed("the run does not end") from None
        said = self.log.read_text(errors="replace")
        hold(found == status, f"status {found}: {said[-300:]}")
        hold("Traceback" not in said, "a traceback")
        return said


def swapped(run: Run, file: Path) -> None:
    """Let a full disk stand in the place of a file until a record is lost; the run stands still while they change."""
    aside = run.run / "elsewhere"
    run.process.send_signal(signal.SIGSTOP)
    file.rename(aside)
    file.symlink_to(FULL)
    run.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE
    while "is not in" not in run.log.read_text(errors="replace"):
        hold(run.process.poll() is None and time.monotonic() < deadline, "no record is told to be lost")
        time.sleep(0.005)
    run.process.send_signal(signal.SIGSTOP)
    file.unlink()
    aside.rename(file)
    run.process.send_signal(signal.SIGCONT)


def undisturbed(folder: Path) -> Curve:
    """Train the job, to which nothing happens; its curve."""
    Run(folder, "alone").end()
    curve = drills.curve(folder / "alone")
    hold(len(curve) == STEPS, "the undisturbed run is not whole")
    return curve


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "NULs behind the end": lambda line: b"\0" * 4096,
    "half of the last line": lambda line: line[: len(line) // 2],
    "no UTF-8": lambda line: line[:9] + b"\xff\xc3" + line[9:],
    "NULs in a record": lambda line: line[:9] + b"\0" * 200 + line[200:],
}


def damaged_tails(folder: Path, expected: Curve, damage: Callable[[bytes], bytes]) -> str:
    """Damage the end of every report of a finished run, which then goes on from the checkpoint before the last."""
    run = folder / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "alone", run)
    shutil.rmtree(run / "checkpoint" / f"step-{STEPS}")
    bad = {}
    for kind in ("metrics", "validation", "extrapolation"):
        file = run / f"{kind}.jsonl"
        lines = file.read_bytes().splitlines() if file.exists() else [json.dumps({"step": STEPS - INTERVAL}).encode() * 1]
        bad[kind] = damage(lines[-1])
        file.write_bytes(b"\n".join([*lines, bad[kind]]))
    (folder / "damaged.log").unlink(missing_ok=True)
    said = Run(folder, "damaged").end()
    for kind, text in bad.items():
        hold(re.search(rf"{kind}\.jsonl: 1 damaged line", said), f"{kind}.jsonl is not named")
        hold((run / f"{kind}.jsonl.damaged").read_bytes() == text + b"\n", f"what {kind}.jsonl lost is not kept")
    hold(drills.curve(run) == expected, "OTHER CURVE")
    return "each file named, each line kept"


def failing_sink(folder: Path, expected: Curve, sink: str) -> str:
    """Let one sink fail for a while in the middle of a run; the others must have everything."""
    name = f"sink-{sink}"
    (folder / "sink_of_the_drill.py").write_text(PLUGIN)
    more = [
        "--metrics.enable_tensorboard",
        "true",
        "--job.plugins",
        '["sink_of_the_drill"]',
        "--metrics.sinks",
        '["of_the_drill"]',
    ]
    run = Run(folder, name, *more)
    run.wait_for_step(10)
    if sink == "jsonl":
        swapped(run, run.metrics)
    elif sink == "tensorboard":
        (events,) = (run.run / "tensorboard").iterdir()
        swapped(run, events)
    said = run.end()
    lost = {
        name: (int(n), int(a), int(b)) for name, n, a, b in re.findall(r"warning: (\w+) lacks (\d+) .* (\d+) to (\d+)", said)
    }
    hold(lost.pop("OfTheDrill", None) == (10, 21, 30), "the plug-in's loss is not told")
    classes = {"jsonl": "JsonLines", "tensorboard": "TensorBoard"}
    hold(set(lost) <= {classes.get(sink)}, f"others lost records: {lost}")
    count, first, last = lost.get(classes.get(sink, ""), (0, 0, -1))
    hold(count or sink == "of_the_drill", "nothing was lost")
    gone = set(range(first, last + 1)) if count else set()
    steps: dict[str, set[int]] = {
        "jsonl": set(drills.curve(run.run)),
        "tensorboard": points(run.run),
        "of_the_drill": {int(line) for line in (run.run / "drill.txt").read_text().split()},
    }
    for other, found in steps.items():
        without = set(range(21, 31)) if other == "of_the_drill" else gone if other == sink else set()
        hold(found == set(expected) - without, f"{other} has not what it should: {sorted(set(expected) - without - found)}")
    hold(drills.curve(run.run).items() <= expected.items(), "OTHER CURVE")
    return f"{count + 10 * (sink == 'of_the_drill')} record(s) lost and told"


def points(run: Path) -> set[int]:
    """Steps of which TensorBoard has the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {point.step for point in events.Scalars("loss")}


def signalled(folder: Path, expected: Curve, number: signal.Signals) -> str:
    """Stop a run by a signal to all its processes, and let it go on."""
    name = number.name
    run = Run(folder, name, "--data.num_workers", "1")
    run.wait_for_step(13)
    os.killpg(run.process.pid, number)
    said = run.end()
    answer = re.search(rf"^{name}: finishing step (\d+), then saving$", said, re.MULTILINE)
    stopped = re.search(rf"{name}: stopped after step (\d+) of", said)
    hold(answer, "not answered")
    hold(stopped and (run.run / "checkpoint" / f"step-{stopped[1]}" / "manifest.json").exists(), "not saved")
    Run(folder, name, "--data.num_workers", "1").end()
    hold(drills.curve(run.run) == expected, "OTHER CURVE")
    return "answered, saved, status 0" if answer else ""


def without_streams(folder: Path, expected: Curve, what: str) -> str:
    """Take stdout away, by its reader or by a full disk, or stderr too."""
    reader, writer = os.pipe()
    full = os.open(FULL, os.O_WRONLY)
    name = what.replace(" ", "-")
    run = Run(folder, name, stdout=writer if what == "no reader" else full, stderr=full if "stderr" in what else None)
    os.close(writer)
    os.close(full)
    os.read(reader, 100)
    os.close(reader)
    said = run.end()
    hold(drills.curve(run.run) == expected, "OTHER CURVE")
    hold((run.run / "checkpoint" / f"step-{STEPS}" / "manifest.json").exists(), "not saved")
    hold("stderr" in what or "ConsoleLines lacks" in said, "not told on stderr")
    lost: Any = drills.records(run.run)[-1].get("lost_records", {})
    hold(lost.get("console"), "not told in metrics.jsonl")
    return f"{lost['console']} lines lost and told"


def second_start(folder: Path, expected: Curve) -> str:
    """Start the same command while the run goes on: it must be refused, with who holds the folder."""
    first = Run(folder, "twice")
    first.wait_for_step(5)
    second = Run(folder, "twice")
    try:
        status = second.process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        second.process.kill()
        status = None
    said = first.end()
    hold(status == 2, f"the second start ended with status {status}")
    hold(re.search(rf"\b{first.process.pid}\b", said), "its message does not name the holder's process")
    hold(drills.curve(first.run) == expected, "OTHER CURVE")
    return "status 2, the holder named"


def cases() -> dict[str, Callable[[Path, Curve], str]]:
    """Every case by its name."""
    return {
        **{f"reports: {name}": partial(damaged_tails, damage=damage) for name, damage in DAMAGES.items()},
        **{f"fails for a while: {sink}": partial(failing_sink, sink=sink) for sink in ("jsonl", "tensorboard", "of_the_drill")},
        **{
            number.name: partial(signalled, number=number)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        },
        **{what: partial(without_streams, what=what) for what in ("no reader", "stdout full", "stdout and stderr full")},
        "started twice": second_start,
    }


def drill(folder: Path) -> bool:
    """Run all cases, print a table, and tell whether every guarantee holds."""
    folder.mkdir(parents=True, exist_ok=True)
    expected, good = undisturbed(folder), True
    every = cases()
    width = max(map(len, every))
    print(
        f"{'what happens':<{width}}  seconds  what is seen; the curve is that of the undisturbed run, bit for bit", flush=True
    )
    for name, case in every.items():
        begun = time.monotonic()
        try:
            seen = case(folder, expected)
        except Failed as failure:
            seen, good = f"FAILED: {failure}", False
        print(f"{name:<{width}}  {time.monotonic() - begun:>7.0f}  {seen}", flush=True)
    return good
