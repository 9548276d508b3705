"""What a pretended run did, in the order in which a reader asks: launches, waits of the host, copies, kernels."""

import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


class Kernel(NamedTuple):
    """What ptxas says of one configuration of a kernel.

    Attributes:
        shared: bytes of shared memory of a thread block.
        registers: of a thread.
        stack: bytes of local memory of a thread; spilled registers are there.
        warps: of a thread block.
    """

    shared: int
    registers: int
    stack: int
    warps: int


@dataclass
class Record:
    """Counts of one run.

    Attributes:
        phase: "start" until the first step, then "step 1", "step 2", ...
        part: whose launches are counted: "blocks", "head" or "rest".
        launches: by phase, part and name of the kernel or operator, which counts as one, though some launch several.
        collectives: by phase and name of the operator.
        waits: of the host for the device, by phase, kind and place.
        pageable: copies to the device from memory that is not pinned, likewise; the host waits for them too.
        kernels: compiled ones by name, with every configuration that was compiled.
    """

    phase: str = "start"
    part: str = "rest"
    launches: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    collectives: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    pageable: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    kernels: dict[str, list[Kernel]] = field(default_factory=dict)

    def launch(self, name: str) -> None:
        """Count a launch."""
        self.launches[self.phase, self.part, name] += 1

    def collective(self, name: str) -> None:
        """Count a collective."""
        self.collectives[self.phase, name] += 1

    def wait(self, kind: str) -> None:
        """Count a wait at the place in Cistron that is being executed."""
        self.waits[self.phase, kind, place()] += 1

    def copy_from_pageable(self, kind: str) -> None:
        """Count a copy, likewise."""
        self.pageable[self.phase, kind, place()] += 1

    def kernel(self, name: str, compiled: Kernel) -> None:
        """Note a compiled kernel."""
        self.kernels.setdefault(name, []).append(compiled)


def place() -> str:
    """Return the innermost line of the package that is being executed, and the function around it."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(ROOT) and not path.is_relative_to(HERE):
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return "outside of the package"
