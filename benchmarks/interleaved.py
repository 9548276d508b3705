"""Interleaved repeats: contenders of `train_speed.py`, each in its own process, alternate after a few steps.

A contender calls `Repeats.wait` where its loop asks for the next rows, which is where one step ends and another begins.
It reports the step behind it as a line of JSON and stands still until told to go on.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Rows = dict[str, torch.Tensor]


class Repeats:
    """A contender's side of the repeats. What its framework prints goes to stderr: stdout is for the reports.

    Args:
        folder: of the benchmark, with `job.json`, `rows.pt` and `weights.pt`.
    """

    def __init__(self, folder: Path) -> None:
        """Take stdout for the reports."""
        self.channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.folder = folder
        self.job: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.device = torch.device(self.job["device"])
        self.started = 0.0

    def begin(self, model: torch.nn.Module, loss: Callable[[], float]) -> None:
        """Say that the model stands ready, and how the loss of the last step is read, outside of the time of a step."""
        self.parameters, self.loss = sum(p.numel() for p in model.parameters()), loss

    def wait(self) -> None:
        """Report the step that ended here, if there was one, and wait for the word to take the next."""
        self.synchronize()
        report: dict[str, Any] = {"parameters": self.parameters}
        if self.started:
            report |= {"seconds": time.perf_counter() - self.started, "loss": self.loss(), "memory": self.memory()}
        self.channel.write(json.dumps(report) + "\n")
        self.channel.flush()
        if not sys.stdin.readline():
            os._exit(0)  # the benchmark is over; a framework would go through its own ceremony
        self.started = time.perf_counter()

    def synchronize(self) -> None:
        """Let the device finish what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def memory(self) -> float:
        """Peak so far in bytes: of the allocator on CUDA, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def rows(self) -> Iterator[Rows]:
        """One batch per repeat, for contenders that read no data themselves: `tokens`, `labels`, `positions`, ..."""
        batches: list[Rows] = torch.load(self.folder / "rows.pt")
        while True:
            for batch in batches:
                self.wait()
                yield batch

    def weights(self, hugging_face: bool = False) -> dict[str, torch.Tensor]:
        """The weights that all begin with, float32, by Cistron's names or by those of Hugging Face's Llama."""
        state: dict[str, torch.Tensor] = torch.load(self.folder / "weights.pt", mmap=True)
        names: dict[str, str] = self.job["hugging_face_names"]
        return {names[key] if hugging_face else key: value for key, value in state.items()}
