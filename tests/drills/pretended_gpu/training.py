"""One job of the real `Trainer` on pretended GPUs: four steps of two micro-batches, the first and the last reported."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from cistron.datasets.loading import Batch
from cistron.models import loss as loss_head
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, World, join
from cistron.trainer.train import Trainer
from torch._dynamo.utils import counters
from torch._inductor.output_code import CompiledFxGraph
from torch.testing._internal.distributed.fake_pg import FakeStore

from .record import Kernel, Record
from .tensors import PretendedTensors

STEPS = 4
QUIET = ("step 2", "step 3")  # of which nothing is reported
MICRO_BATCHES = 2


@dataclass
class Observed:
    """What is known of a job after it.

    Attributes:
        graphs: that torch.compile made in all.
        recompiled: of them, those made after step 2.
        breaks: reasons of graph breaks.
        quiet_waits: of the host for the device in steps of which nothing is reported, by kind and place.
        waits: in steps that are reported, likewise.
        pageable: copies from memory that is not pinned, after step 1.
        per_layer: launches of a block for a micro-batch: forward, backward and what is computed again.
        launches: of kernels in step 3.
        collectives: in step 3, by operator.
        kernels: of each kernel the configuration that takes least shared memory, registers and stack.
        seconds: of a core that the job took, with its compilers; most of them are theirs.
    """

    graphs: int = 0
    recompiled: int = 0
    breaks: list[str] = field(default_factory=list)
    quiet_waits: dict[str, int] = field(default_factory=dict)
    waits: dict[str, int] = field(default_factory=dict)
    pageable: dict[str, int] = field(default_factory=dict)
    per_layer: float = 0.0
    launches: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    seconds: float = 0.0


class Watched(Trainer):
    """A trainer that says which step its record is of."""

    record: Record
    graphs: dict[str, int]

    def fetch(self) -> tuple[list[Batch], Exception | None]:
        """Count from here on as of the next step, whose data are fetched first."""
        self.graphs[self.record.phase] = graphs_so_far()
        self.record.phase = f"step {self.progress.step + 1}"
        return super().fetch()


def observe(argv: list[str], processes: int, record: Record, plant: str = "") -> Observed:
    """Train a job on rank 0 of some processes that exist in name only; no other job may follow in this process.

    Args:
        argv: of `cistron train`.
        processes: ranks.
        record: that the pretended device writes to.
        plant: fault to make, see `FAULTS`; empty: none.
    """
    begun = processor_seconds()
    pretend_ranks(processes)
    count_parts(record)
    config, _ = load_config(argv)
    with PretendedTensors(record):
        world = join(config, FakeStore())
        trainer = Watched(config, world, StopRequest())
        trainer.record, trainer.graphs = record, {}
        trainer.prompt = []  # no sample at the end
        if plant:
            FAULTS[plant](trainer)
        trainer.train()
        trainer.close()
    return summary(trainer, processor_seconds() - begun)


def pretend_ranks(processes: int) -> None:
    """Let `join` find a launcher's processes, and all of them know what rank 0 does."""
    os.environ |= {"WORLD_SIZE": str(processes), "RANK": "0", "LOCAL_RANK": "0"}
    initialize = dist.init_process_group

    def fake(backend: str, timeout: timedelta, **rest: Any) -> None:
        initialize("fake", **rest)

    def gather(into: list[Any], value: Any, group: Any = None) -> None:
        into[:] = [value] * len(into)

    dist.init_process_group = fake
    dist.all_gather_object = gather
    World.sum = lambda self, values: [value * processes for value in values]  # type: ignore[method-assign]


def count_parts(record: Record) -> None:
    """Tell launches of compiled blocks from those of the output with its loss, and from the rest."""

    def within(part: str, original: Callable[..., Any], *, only: str = "") -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outer = record.part
            record.part = part if only in ("", outer) else outer
            try:
                return original(*args, **kwargs)
            finally:
                record.part = outer

        return call

    # the loss has no graph in backward passes, and its products are not compiled
    loss_head.Output.forward = within("head", loss_head.Output.forward)  # type: ignore[method-assign]
    CompiledFxGraph.__call__ = within("blocks", CompiledFxGraph.__call__, only="rest")  # type: ignore[method-assign]


def processor_seconds() -> float:
    """Return the time of a core that this process has taken, and those that it has waited for."""
    return sum(os.times()[:4])


def graphs_so_far() -> int:
    """Return how many graphs torch.compile has made."""
    return int(counters["stats"]["unique_graphs"])


def summary(trainer: Watched, seconds: float) -> Observed:
    """Return what a job has shown."""
    record, graphs = trainer.record, graphs_so_far()

    def kept(counts: Counter[tuple[str, str, str]], phases: Callable[[str], bool]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (phase, kind, where), times in counts.items():
            if phases(phase):
                found[f"{where}: {kind}"] += times
        return dict(found)

    of_step_3: Counter[str] = Counter()
    for (phase, part, _), times in record.launches.items():
        of_step_3[part] += times * (phase == QUIET[-1])
    return Observed(
        graphs=graphs,
        recompiled=graphs - trainer.graphs.get("step 2", 0),
        breaks=[f"{reason} ({times} x)" for reason, times in counters["graph_break"].items()],
        quiet_waits=kept(record.waits, lambda phase: phase in QUIET),
        waits=kept(record.waits, lambda phase: phase not in QUIET and phase != "start"),
        pageable=kept(record.pageable, lambda phase: phase not in ("start", "step 1")),
        per_layer=of_step_3["blocks"] / (trainer.decoder_config.n_layers * MICRO_BATCHES),
        launches=of_step_3.total(),
        collectives={name: times for (phase, name), times in record.collectives.items() if phase == QUIET[-1]},
        kernels={name: min(configurations) for name, configurations in record.kernels.items()},
        seconds=seconds,
    )


# ---- faults, to see that they are found


def read_the_loss(trainer: Watched) -> None:
    """Plant a wait of the host in every step."""
    optimize = trainer.optimize

    def and_read(*args: Any) -> Any:
        outcome = optimize(*args)
        outcome.loss.item()
        return outcome

    trainer.optimize = and_read  # type: ignore[method-assign]


def pin_nothing(trainer: Watched) -> None:
    """Plant copies from pageable memory."""
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign,assignment]


def change_what_guards_watch(trainer: Watched) -> None:
    """Plant a recompilation in step 3."""
    advance = trainer.advance

    def and_change(*args: Any) -> Any:
        torch.set_num_threads(2 if trainer.progress.step == 2 else 1)
        return advance(*args)

    trainer.advance = and_change  # type: ignore[method-assign]


def break_the_loss(trainer: Watched) -> None:
    """Plant a graph break."""
    statistics = loss_head._statistics

    def broken(*args: Any) -> Any:
        torch._dynamo.graph_break()
        return statistics(*args)

    loss_head._statistics = broken


FAULTS: dict[str, Callable[[Watched], None]] = {
    "wait": read_the_loss,
    "pageable": pin_nothing,
    "recompilation": change_what_guards_watch,
    "break": break_the_loss,
}
