"""`cistron doctor`: is this machine, this cluster, this installation fit to train, and how fast is it?

Alone, under torchrun or under srun. It goes through parts, each with a time limit, and gives a verdict per line: ok,
slow, wrong or not here. The exit status is 1 where something is wrong.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ... import __version__
from ...datasets.files import check_writable, write_atomically
from ...trainer.build import make_decoder_config, make_tokenizer
from ...trainer.config import JobConfig, load_config
from ...trainer.errors import ConfigError
from ...trainer.estimates import estimate
from ...trainer.processes import Layout, Terminal, run_command
from ..support import number
from . import attention, collectives, disk, numerics, rates, training, versions
from .examination import Examination
from .launch import Ranks, own_folder, run_part, slurm_environment
from .report import Line, Report, print_part

PARTS: dict[str, Callable[[Examination], None]] = {
    "versions": versions.examine,
    "attention": attention.examine,
    "numerics": numerics.examine,
    "collectives": collectives.examine,
    "rates": rates.examine,
    "disk": disk.examine,
    "training": training.examine,
}


def main(argv: Sequence[str]) -> None:
    """Parse the command line, run the parts, end with status 1 where something is wrong."""
    usage = "cistron doctor [--config FILE] [--parts a,b] [--json FILE] [--part-seconds N] [--section.key value ...]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, allow_abbrev=False)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in this order (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too, on rank 0")
    parser.add_argument(
        "--part-seconds", type=number(0.001, 24 * 3600), default=120.0, help="time limit of each part (default: %(default)g)"
    )
    options, others = parser.parse_known_args(argv)
    status = 0

    def command() -> None:
        nonlocal status
        status = doctor(others, chosen(options.parts), options.json, options.part_seconds)

    run_command(command)
    sys.exit(status)


def chosen(text: str) -> list[str]:
    """Return the parts of a list. Raises ConfigError for a name that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"--parts {text}: no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return names


def doctor(argv: Sequence[str], parts: Sequence[str], file: Path | None, limit: float) -> int:
    """Run the parts, print and write the report; returns the exit status."""
    started = time.perf_counter()
    if file and not file.parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.parent}")
    if file and os.environ.get("RANK", "0") == "0":
        check_writable(file, "--json", ConfigError)
    config, chosen_by_user = load_config(argv, "cistron doctor")
    slurm_environment()
    ranks = Ranks()
    own = first_device(config, limit)  # on every rank, as its child joins those of the others
    device, gib = json.loads(ranks.share("device", lambda: json.dumps(own)))
    name = chosen_by_user.config or default_config(gib)
    if not chosen_by_user.config:
        config, _ = load_config(["--config", name, *argv], "cistron doctor")
    lines: list[Line] = []
    part_seconds: dict[str, float] = {}
    console = Terminal(quiet=ranks.rank > 0)
    with own_folder(config, ranks.share("folder", lambda: f".doctor-{time.time_ns()}")) as job:
        for part in parts:
            begun = time.perf_counter()
            found = ranks.gather(part, run_part(part, PARTS[part], job, limit), limit + 30)
            part_seconds[part] = time.perf_counter() - begun
            lines += found
            print_part(console, part, part_seconds[part], found, ranks.count)
    seconds = time.perf_counter() - started
    report = Report(
        version=__version__,
        hosts=ranks.hosts,
        device=device,
        config=name,
        seconds=seconds,
        part_seconds=part_seconds,
        lines=lines,
    )
    counts = ", ".join(f"{report.count(verdict)} {verdict}" for verdict in ("ok", "slow", "wrong", "not here"))
    console.print(f"\n{counts}; {ranks.count} process(es) on {len({*ranks.hosts})} machine(s), {name}, {seconds:.0f} s")
    status = int(report.count("wrong") > 0)
    if file and ranks.rank == 0:
        try:
            write_atomically(file, (report.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"--json {file}: cannot be written: {error.strerror}") from None
    return ranks.agree(status)


def first_device(config: JobConfig, limit: float) -> tuple[str, float]:
    """Return the name of this rank's device and its memory, GiB; 0 for a CPU. A child asks: CUDA survives no fork."""
    lines = run_part("device", device_line, config, limit)
    found = next((line for line in lines if line.verdict == "ok"), None)
    return (found.name, found.value or 0.0) if found else ("a device that did not answer", 0.0)


def device_line(e: Examination) -> None:
    """Find the name and the memory of the device."""
    if e.on_gpu:
        properties = torch.cuda.get_device_properties(e.device)
        e.find(properties.name, "ok", properties.total_memory / 2**30, "GiB")
    else:
        e.find("CPU", "ok", 0.0, "GiB")


def default_config(gib: float) -> str:
    """Return the shipped job for a device: llama3_1b where one GPU holds it with a tenth to spare, else debug."""
    config, _ = load_config(["--config", "llama3_1b"])
    decoder = make_decoder_config(config, make_tokenizer(config))
    peak = max(moment.size for moment in estimate(config, decoder, Layout.resolve(config), "flex", "cuda"))
    return "llama3_1b" if peak < 0.9 * gib * 2**30 else "debug"
