"""For how long a save stops training: beside training against waiting for the disk, in turn, on one process.

    python benchmarks/checkpoint_stall.py --saves 8

A save every `--interval` steps, the modes of `checkpoint.async_mode` in turn. What counts as stopped is what the saves' own
messages say, and beside it the time of the steps during which a checkpoint is being written, over that of other steps.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path

from cistron.trainer.checkpoints import Saver
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

ROOT = Path(__file__).resolve().parents[1]
SAVED = re.compile(r"saved .*/step-(\d+), (\S+) GB in (\S+) s; training stood still for (\S+) s")


def main() -> None:
    """Train one job and save it in both ways; print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "train_configs" / "debug.toml"), help="job to run")
    parser.add_argument("--saves", type=int, default=8, help="of each mode (default: 8)")
    parser.add_argument("--interval", type=int, default=6, help="steps between two saves (default: 6)")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("overrides", nargs="*", help="TOML overrides, after --")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        steps = 2 * options.saves * options.interval
        argv = ["--config", options.config, "--job.dump_folder", folder, "--training.steps", str(steps)]
        argv += ["--checkpoint.interval", str(options.interval), "--checkpoint.keep_latest_k", "1", *options.overrides]
        config, _ = load_config(argv)
        trainer = Trainer(config, join(config), StopRequest())
        said: list[str] = []
        say = trainer.log.say
        waiting = config.checkpoint.model_copy(update={"async_mode": "disabled"})
        beside = config.checkpoint.model_copy(update={"async_mode": "async"})
        savers = [
            Saver(mode, trainer.saver.run, trainer.checkpoints, trainer.world, said.append, 0) for mode in (beside, waiting)
        ]
        trainer.saver = savers[0]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        fetch, save = trainer.fetch, trainer.save
        state = {"began": 0.0, "writing": False}

        def fetch_and_time() -> object:
            now = time.perf_counter()
            if state["began"]:
                seconds[state["writing"]].append(now - state["began"])
            state.update(began=now, writing=trainer.saver.running is not None)
            return fetch()

        def save_in_turn() -> None:
            trainer.saver.finish()
            trainer.saver = trainer.heartbeat.saver = savers[trainer.progress.step // options.interval % 2]
            save()
            state["began"] = 0.0  # the save is counted by its own message

        trainer.fetch, trainer.save = fetch_and_time, save_in_turn  # type: ignore[method-assign, assignment]
        trainer.log.say = lambda _message: None  # type: ignore[method-assign]
        trainer.train()
        trainer.close()

    saves = [match.groups() for line in said if (match := SAVED.match(line))]
    stalls: dict[int, list[float]] = {0: [], 1: []}
    for step, _, _, stall in saves[2:]:
        stalls[int(step) // options.interval % 2].append(float(stall))
    stopped, waited = statistics.median(stalls[0]), statistics.median(stalls[1])
    say(f"checkpoints of {saves[-1][1]} GB; each save stops training for (median of {len(stalls[0])} and {len(stalls[1])}):")
    say(f"  beside training   {stopped:.3f} s")
    say(f"  waiting for it    {waited:.3f} s    ratio {waited / stopped:.1f}")
    busy, idle = statistics.median(seconds[True]), statistics.median(seconds[False])
    say(f"a step takes {busy:.3f} s while a checkpoint is written, {idle:.3f} s otherwise: ratio {busy / idle:.3f}")


if __name__ == "__main__":
    main()
