"""Train shipped configurations on a pretended H200, and say what is not as it should be; `run.sh` starts it.

No kernel runs, so that nothing is learnt about numbers or speed. All else is real: the trainer and its data, Inductor,
Triton and ptxas. Each case is a fork, so that imports are paid once; a line when it ends, the table at the end, then
what did not hold. Exits 1 where anything did not.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from . import device
from .record import Kernel, Record

RECORD = Record()
device.install(RECORD)  # before compilers are imported

from .cases import CASES, Case, complaints  # noqa: E402
from .training import FAULTS, Observed, load_config, observe  # noqa: E402

SECONDS = 3600  # of a case; half a minute of a core is usual, and a machine may have others to serve
COLUMNS = (
    "case",
    "graphs",
    "compiled after step 2",
    "breaks",
    "waits in quiet, reported steps",
    "pageable copies",
    "launches: a layer, a step",
    "shared memory",
    "registers",
    "stack",
    "core seconds",
)


def run_case(case: Case, run: Path, plant: str) -> None:
    """Run a case in a fork of its own; it leaves `seen.json` in the folder `run`, or the traceback in its log."""
    with (run / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        toml, _ = load_config(["--config", case.arguments(1, run)[1]])
        seen = observe(case.arguments(toml.training.local_batch_size, run), case.processes, RECORD, plant)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    (run / "seen.json").write_text(json.dumps(asdict(seen)))
    sys.stdout.flush()
    os._exit(0)  # threads of the loader and of process groups end with it


def result(case: Case, run: Path, plant: str) -> tuple[Observed | None, list[str]]:
    """Return what a case has shown, None if it failed, and what is wrong with it."""
    run.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=run_case, args=(case, run, plant))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        return None, [f"expected an end within {SECONDS} s"]
    if process.exitcode:
        return None, [f"expected {case.processes} ranks to train, found:\n{(run / 'log').read_text()[-4000:]}"]
    values = json.loads((run / "seen.json").read_text())
    values["kernels"] = {name: Kernel(*kernel) for name, kernel in values["kernels"].items()}
    seen = Observed(**values)
    return seen, list(complaints(case, seen))


def row(case: Case, seen: Observed) -> str:
    """Return the line of a case in the table."""
    largest = [max(values) for values in zip(*seen.kernels.values(), strict=True)] or [0, 0, 0, 0]
    cells = (
        case.name,
        seen.graphs,
        seen.recompiled,
        len(seen.breaks),
        f"{sum(seen.quiet_waits.values())}, {sum(seen.waits.values())}",
        sum(seen.pageable.values()),
        f"{seen.per_layer:g}, {seen.launches:,}",
        f"{largest[0]:,}",
        largest[1],
        largest[2],
        f"{seen.seconds:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORDS", help="cases with all of these words; repeat for more"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--plant", choices=sorted(FAULTS), default="", help="make a fault in every case, to see it found")
    parser.add_argument("--out", type=Path, help="folder of logs and of what each case has shown; default: a temporary one")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.only or any(wanted(case, words) for words in options.only)]
    if options.list or not chosen:
        print("\n".join(case.name for case in CASES))
        return 0 if options.list else 2
    with tempfile.TemporaryDirectory() as temporary:
        rows, wrong = [], []
        for case in chosen:
            seen, found = result(
                case, (options.out or Path(temporary)) / case.name.replace(", ", "-").replace(" ", "_"), options.plant
            )
            wrong += [f"{case.name}: {line}" for line in found]
            rows += [row(case, seen)] if seen else []
            print(
                f"{case.name}: {len(found) or 'nothing'} wrong" + (f", {seen.seconds:.0f} s of a core" if seen else ""),
                flush=True,
            )
    print(f"\ntorch {torch.__version__}, pretended H200 (sm_90)\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    print("\n".join(rows))
    print("".join(f"\n{line}" for line in wrong))
    return 1 if wrong else 0


def wanted(case: Case, words: str) -> bool:
    """Return whether a case has all factors that `words` names, divided by commas."""
    return {word.strip() for word in words.split(",")} <= set(case.name.split(", "))


if __name__ == "__main__":
    sys.exit(main())
