"""Kill a run again and again, damage what it saved, and compare what it learns with a run that nothing happened to.

    python tests/drills/fault_drill.py   50 kills, each file of the newest checkpoint damaged, then what else may happen
    python tests/drills/fault_drill.py --kills 10 --only kills

**Kills.** A small job on two processes is trained to its end. Then it is trained again and gets SIGKILL at random
moments: one rank, all ranks, or torchrun's group, which must not leave ranks behind; while starting, at any moment of a
step, or during a save, which is seen by a step folder without a manifest. Whatever is left is started again with the
same command; a third of the kills happens under `torchrun --max-restarts`, which does that by itself. In the end
losses, gradient norms and the hash of all rows must be those of the undisturbed run, bit for bit.

**Damage.** Each file of the newest checkpoint is cut off in the middle, has one bit flipped, or is removed, each in a
copy of the finished run. The restart must name the file, go on from the checkpoint before, and end with the same curve.

**Endings** (`endings.py`). On one process: the end of each report damaged, sinks failing in turn, SIGTERM, SIGINT,
SIGHUP, SIGUSR1, stdout and stderr gone, and a second start of the same command.

The job is tiny and saves every other step, so that the drill takes minutes and meets as many saves as a month of a real
job.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import drills
import endings

LAUNCHER = ("--standalone", "--nproc_per_node", "2")
INTERVAL = 2  # steps between checkpoints
TIMEOUT = 20  # comm.timeout_seconds
PATIENCE = 180  # seconds without progress after which a run counts as hanging
MOMENTS = ("start", "step", "step", "save", "save", "save")
DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "bit flipped": lambda file: flip(file),
    "deleted": lambda file: file.unlink(),
}


class Life:
    """The job from a start of torchrun to its end.

    Args:
        config: the job.
        overrides: further arguments for the trainer.
        restarts: how many deaths torchrun itself is to make good.
    """

    def __init__(self, config: Path, overrides: Sequence[str], restarts: int = 0) -> None:
        """Start it."""
        self.run, self.log = config.with_suffix(""), config.with_suffix(".log")
        command = drills.torchrun(config, [*LAUNCHER, "--max-restarts", str(restarts)], overrides)
        self.process = drills.start(command, self.log)
        self.killed: set[int] = set()

    def ranks(self) -> list[int]:
        """Ranks that were not there at the last kill."""
        return [pid for pid in drills.children(self.process.pid) if pid not in self.killed]

    def saving(self) -> bool:
        """Whether a checkpoint is being written, or was when the run was killed."""
        folders = drills.step_folders(self.run)
        return bool(folders) and drills.is_torn(folders[max(folders)])

    def wait_until(self, condition: Callable[[], object]) -> bool:
        """Poll every 2 ms; False if the run ended before. Exits where nothing happens for too long."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise SystemExit(f"the run hangs: {self.log}")
            time.sleep(0.002)
        return True

    def reach(self, moment: str, draw: random.Random) -> bool:
        """Wait for a random moment of the given kind; False if the run ended before."""
        before = drills.last_step(self.run)
        if not self.wait_until(self.ranks):
            return False
        if moment == "start":
            time.sleep(draw.uniform(0, 5))
            return self.process.poll() is None
        # a resume takes records of steps that are done again out of the file, so any change is a sign of life
        if not self.wait_until(lambda: drills.last_step(self.run) != before):
            return False
        goal = drills.last_step(self.run) + draw.randint(0, 6)
        if not self.wait_until(lambda: drills.last_step(self.run) >= goal):
            return False
        if moment == "save" and not (self.wait_until(lambda: not self.saving()) and self.wait_until(self.saving)):
            return False
        time.sleep(draw.uniform(0, 0.05))
        return True

    def kill(self, victim: str, draw: random.Random) -> bool:
        """Send SIGKILL to one rank, all ranks, or torchrun's group; False if there was nobody."""
        ranks = self.ranks()
        self.killed |= set(ranks)
        if victim == "torchrun":
            alive = self.process.poll() is None
            if alive:
                os.killpg(self.process.pid, signal.SIGKILL)
            return alive
        chosen = [draw.choice(ranks)] if ranks and victim == "one rank" else ranks
        return sum(drills.kill(rank) for rank in chosen) > 0

    def end(self) -> int:
        """Wait for torchrun, as long as the run gets on; its status."""
        step, deadline = -1, 0.0
        while (status := self.process.poll()) is None:
            if (now := drills.last_step(self.run)) != step:
                step, deadline = now, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise SystemExit(f"the run hangs: {self.log}")
            time.sleep(0.05)
        return status


def wait_for_death(ranks: set[int], seconds: float) -> None:
    """See to it that ranks which were killed, or whose torchrun was, do not go on."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in ranks if drills.is_alive(pid)]:
        if time.monotonic() > deadline:
            raise SystemExit(f"ranks {left} outlive their torchrun")
        time.sleep(0.01)


def kill_and_restart(config: Path, kills: int, draw: random.Random, tally: Counter[str], overrides: Sequence[str]) -> None:
    """Kill the job so often, starting it again each time."""
    orphans: set[int] = set()
    for done in range(kills):
        life = Life(config, overrides)
        moment, victim = draw.choice(MOMENTS), draw.choice(("one rank", "all ranks", "torchrun"))
        killed = life.reach(moment, draw) and life.kill(victim, draw)
        life.end()
        if not killed:
            raise SystemExit(f"the run ended by itself after {done} of {kills} kills: {life.log}")
        if moment == "start":  # ranks that have not joined leave when they find that they cannot, having touched nothing
            orphans |= life.killed
        else:
            wait_for_death(life.killed, 10)
        tally.update([moment, victim])
        tally["hit a save"] += life.saving()
    wait_for_death(orphans, TIMEOUT + 100)


def kill_under_torchrun(config: Path, kills: int, draw: random.Random, tally: Counter[str], overrides: Sequence[str]) -> None:
    """Kill ranks so often under one torchrun, which starts them again, to the end of the job."""
    life = Life(config, overrides, restarts=kills)
    for _ in range(kills):
        moment, victim = draw.choice(MOMENTS), draw.choice(("one rank", "all ranks"))
        if not (life.reach(moment, draw) and life.kill(victim, draw)):
            raise SystemExit(f"the run ended by itself: {life.log}")
        tally.update([moment, victim, "restarted by torchrun"])
        wait_for_death(life.killed, PATIENCE)
        tally["hit a save"] += life.saving()
    finish(life)


def finish(life: Life) -> None:
    """Let the job come to its end."""
    if (status := life.end()) != 0:
        raise SystemExit(f"the run ended with status {status}: {life.log}")


def read_log(log: Path) -> Counter[str]:
    """Steps that were taken again after a restart, and checkpoints that were passed over, by what a run printed."""
    told: Counter[str] = Counter()
    step = 0
    for line in log.read_text().splitlines():
        if found := re.match(r"step +(\d+)  loss|resumed from .*step-(\d+)\b", line):
            now = int(found[1] or found[2])
            told["steps redone"] += max(0, step - now + bool(found[1]))
            step = now
        told["passed over"] += line.startswith("passed over")
    return told


def kill_drill(folder: Path, kills: int, seed: int, modes: Sequence[str], same: Callable[[Path], bool], steps: int) -> bool:
    """Run the kills, print a table, and tell whether all curves are the undisturbed one."""
    draw, good = random.Random(seed), True
    kinds = [(mode, by) for mode in modes for by in ("the drill", "the drill", "torchrun")]
    shares = [kills * (n + 1) // len(kinds) - kills * n // len(kinds) for n in range(len(kinds))]
    print("checkpoint.async_mode  restarted by  kills  hit a save  steps redone  passed over  seconds  curve")
    total: Counter[str] = Counter()
    for number, ((mode, by), share) in enumerate(zip(kinds, shares, strict=True)):
        config = drills.write_job(folder, f"killed-{number}", steps=steps, interval=INTERVAL, timeout=TIMEOUT)
        tally: Counter[str] = Counter()
        begun = time.monotonic()
        (kill_under_torchrun if by == "torchrun" else kill_and_restart)(config, share, draw, tally, in_mode(mode))
        if by != "torchrun":
            finish(Life(config, in_mode(mode)))
        tally.update(read_log(config.with_suffix(".log")))
        identical = same(config.with_suffix(""))
        print(
            f"{mode:<21}  {by:<12}  {share:>5}  {tally['hit a save']:>10}  {tally['steps redone']:>12}  "
            f"{tally['passed over']:>11}  {time.monotonic() - begun:>7.0f}  {'bit-identical' if identical else 'DIFFERENT'}",
            flush=True,
        )
        total.update(tally)
        good &= identical
    where = ", ".join(f"{total[key]} {key}" for key in ("one rank", "all ranks", "torchrun"))
    when = ", ".join(f"{total[key]} {key}" for key in ("start", "step", "save"))
    print(f"{kills} kills of: {where}; aimed at: {when}; {total['hit a save']} left a save unfinished\n")
    return good


def in_mode(mode: str) -> list[str]:
    """Arguments for a way of saving."""
    return ["--checkpoint.async_mode", mode]


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_drill(folder: Path, undisturbed: Path, same: Callable[[Path], bool], steps: int) -> bool:
    """Damage every file of the newest checkpoint in every way, print a table, and tell whether each was noticed."""
    newest = drills.step_folders(undisturbed)[steps]
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    width, good = max(len(str(file)) for file in files), True
    print("  ".join([f"{'file of the newest checkpoint':<{width}}", *(f"{how:<32}" for how in DAMAGES)]).rstrip())
    for file in files:
        cells = []
        for damage in DAMAGES.values():
            config = drills.write_job(folder, "damaged", steps=steps, interval=INTERVAL, timeout=TIMEOUT)
            run, log = config.with_suffix(""), config.with_suffix(".log")
            shutil.rmtree(run, ignore_errors=True)
            log.unlink(missing_ok=True)
            shutil.copytree(undisturbed, run)
            damage(run / "checkpoint" / newest.name / file)
            finish(life := Life(config, []))
            cells.append(verdict(life.log.read_text(), newest.name, file.name, same(run)))
        good &= all(cell.startswith("named") for cell in cells)
        print("  ".join([f"{file!s:<{width}}", *(f"{cell:<32}" for cell in cells)]).rstrip(), flush=True)
    return good


def verdict(log: str, newest: str, file: str, same: bool) -> str:
    """What a restart made of damage."""
    passed_over = re.search(rf"passed over .*{newest}: (.*)", log)
    resumed = re.search(r"resumed from .*(step-\d+)\b", log)
    if not passed_over or not resumed:
        return "NOT NOTICED"
    if file not in passed_over[1]:
        return "FILE NOT NAMED"
    return f"named, {resumed[1]}, same curve" if same else "OTHER CURVE"


def on_two_processes(folder: Path, options: argparse.Namespace) -> bool:
    """Run the drills of kills and of damage, or one of them, and tell whether all went well."""
    share = -(-options.kills // (3 * len(options.modes)))
    steps = 40 + 12 * share  # a life takes up to 6 steps of its own and those up to the next save
    config = drills.write_job(folder, "undisturbed", steps=steps, interval=INTERVAL, timeout=TIMEOUT)
    finish(Life(config, []))
    undisturbed = config.with_suffix("")
    expected = drills.curve(undisturbed)
    assert len(expected) == steps

    def same(run: Path) -> bool:
        return drills.curve(run) == expected

    good = True
    if options.only != "damage":
        good &= kill_drill(folder, options.kills, options.seed, options.modes, same, steps)
    if options.only != "kills":
        good &= damage_drill(folder, undisturbed, same, steps)
    return good


def main() -> None:
    """Run the drills; status 1 where a curve differs or damage goes unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often to kill (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments (default: 0)")
    parser.add_argument("--only", choices=("kills", "damage", "endings"), help="one of the drills (default: all)")
    parser.add_argument("--modes", nargs="+", default=["disabled", "async"], help="checkpoint.async_mode (default: both)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, removed afterwards)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        good = True
        if options.only != "endings":
            good &= on_two_processes(folder, options)
        if options.only in (None, "endings"):
            good &= endings.drill(folder / "endings")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
