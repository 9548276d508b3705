"""Small jobs for the trainer's tests: a corpus, a TOML, and the ways to run it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cistron.datasets.shards import ShardWriter, id_dtype
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.ranks import Command, run_on_ranks, start_on_ranks
from cistron.trainer.checkpoints import Folder
from cistron.trainer.checkpoints.format import inspect
from cistron.trainer.checkpoints.manifest import manifest_text
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join, run_command
from cistron.trainer.train import Trainer, main, run

TOML = """
[job]
dump_folder = "{folder}/run"
[model]
preset = "debug"
dim = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
head_dim = 8
hidden_dim = 64
[data]
lanes = 8
[[data.sources]]
name = "words"
format = "jsonl"
paths = ["{folder}/corpus/*.jsonl"]
[training]
seq_len = 64
local_batch_size = 4
global_batch_size = 8
steps = {steps}
mixed_precision_param = "float32"
[optimizer]
lr = 1e-2
[lr_scheduler]
warmup_steps = 4
[checkpoint]
interval = 4
[metrics]
log_freq = 1
enable_tensorboard = false
"""
MIXTURE = """
[[data.sources]]
name = "genes"
format = "fasta"
paths = ["{folder}/genes.fasta"]
weight = 0.5
[[data.sources]]
name = "shards"
format = "tokens"
paths = ["{folder}/shards"]
weight = 0.0
[[data.stages]]
step = 5
weights = {{ words = 1.0, shards = 3.0 }}
"""


class Case(NamedTuple):
    """One way to run a job: the degrees of its layout, and further options as on a command line."""

    kind: str = ""  # which of a test's own variants
    replicate: int = 1
    shard: int = 1
    cp: int = 1
    tp: int = 1
    more: str = ""

    @property
    def processes(self) -> int:
        """How many ranks it takes."""
        return self.replicate * self.shard * self.cp * self.tp

    @property
    def name(self) -> str:
        """A name for its test and its folder."""
        degrees = f"replicate {self.replicate}, shard {self.shard}, cp {self.cp}, tp {self.tp}"
        return ", ".join([*filter(None, [self.kind]), degrees, *self.more.split("--")[1:]])

    @property
    def overrides(self) -> list[str]:
        """Its degrees and options, as a command line has them."""
        degrees = {
            "data_parallel_replicate": self.replicate,
            "data_parallel_shard": self.shard,
            "context_parallel": self.cp,
            "tensor_parallel": self.tp,
        }
        layout = [word for name, degree in degrees.items() for word in (f"--parallelism.{name}_degree", str(degree))]
        return layout + self.more.split()


def write_job(folder: Path, steps: int = 20, more: str = "") -> Path:
    """A corpus of 600 short and a few long documents, and the TOML that trains a tiny decoder on it."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    words = ["pack", "row", "mask", "eos", "lane", "token", "cistron"]
    for part in range(2):
        with (corpus / f"{part}.jsonl").open("w") as file:
            for number in range(300):
                length = draw.randint(40, 80) if number % 50 == 0 else draw.randint(1, 12)
                file.write(json.dumps({"text": " ".join(draw.choices(words, k=length))}) + "\n")
    path = folder / "job.toml"
    path.write_text(TOML.format(folder=folder, steps=steps) + more)
    return path


def write_shards(folder: Path, *, shards: int = 2, weighted: bool = False) -> Path:
    """Token shards of 200 byte documents each, one long, optionally with random loss weights; returns the folder."""
    draw = np.random.default_rng(1)
    for number in range(shards):
        writer = ShardWriter(folder, f"part-{number}", ByteTokenizer(), id_dtype(511), weighted=weighted)
        lengths = [*draw.integers(1, 60, size=199), 300]
        ids = draw.choice(np.frombuffer(b"ACGT", dtype=np.uint8), size=sum(lengths))
        ends = np.cumsum(lengths)
        ids[ends - 1] = 0
        weights = draw.choice(np.array([0, 0.25, 1, 2], dtype=np.float32), size=len(ids)) if weighted else None
        writer.write(ids, ends, weights)
        writer.finish([])
    return folder


def write_mixture(folder: Path, steps: int = 10, *, weighted: bool = False, more: str = "") -> Path:
    """The job of `write_job` with two sources more: "genes" in FASTA, and from step 5 on "shards" of tokens."""
    draw = random.Random(2)
    write_shards(folder / "shards", weighted=weighted)
    records = (f">{n}\n{''.join(draw.choices('acgt', k=draw.randint(10, 90)))}\n" for n in range(400))
    (folder / "genes.fasta").write_text("".join(records))
    return write_job(folder, steps, MIXTURE.format(folder=folder) + more)


def train_here(config: Path, *overrides: str) -> None:
    """Run the job in this process, to its end, on one thread like `start`: torch's kernels split sums by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(["--config", str(config), *overrides])
    finally:
        torch.set_num_threads(threads)


def refusal(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str, status: int = 2) -> str:
    """Run a job that must end before its first step; returns its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: train_here(config, *overrides))
    captured = capsys.readouterr()
    assert caught.value.code == status
    assert "Traceback" not in captured.err
    assert "step      1" not in captured.out
    return captured.err


def command(config: Path, *overrides: str, processes: int = 1) -> list[str]:
    """The command line of a run."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [*launcher, "cistron.trainer.train", "--config", str(config), *overrides]


def start(config: Path, *overrides: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start a run in a process group of its own, one thread per rank as torchrun would have it."""
    return subprocess.Popen(
        command(config, *overrides, processes=processes),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def fork(config: Path, *overrides: str) -> Command:
    """Start a run of one process as `start` does, in a fork: for tests of all but the end of the interpreter."""
    return Command(main, ["--config", str(config), *overrides])


def train(config: Path, *overrides: str, processes: int = 1) -> str:
    """Run the job on ranks of its own, to its end; returns what the first one printed."""
    return run_on_ranks(_train, processes, str(config), *overrides)[0]


def train_until(step: int, config: Path, *overrides: str, processes: int = 1, seconds: float = 0.0) -> None:
    """Run the job on ranks of its own, and kill -9 them all once `step` is logged and `seconds` have passed."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start_on_ranks(folder, _train, processes, str(config), *overrides)
        wait_for_step(config, step, lambda: all(process.is_alive() for process in ranks.processes))
        time.sleep(seconds)
        for process in ranks.processes:
            process.kill()
        for process in ranks.processes:
            process.join()


def _train(config: str, *overrides: str) -> str:
    with redirect_stdout(StringIO()) as output, brief_sample():
        run(["--config", config, *overrides])
    return output.getvalue()


def brief_sample() -> AbstractContextManager[Any]:
    """A run ends with a sample of 4 tokens: 120, a pass of all ranks for each, take longer than its steps."""
    return patch("cistron.trainer.messages.SAMPLE_TOKENS", 4)


def graphs_alone() -> AbstractContextManager[Any]:
    """What is compiled is traced, differentiated and run as it is: machine code takes 10 s of a core for each graph."""
    from torch._dynamo.backends.debugging import aot_eager

    return patch("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **_: aot_eager(graph, inputs))


def wait_for_step(config: Path, step: int, goes_on: Callable[[], bool]) -> None:
    """Block until the run has logged `step`."""
    file = config.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert goes_on(), "the run has ended"
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.02)


def why_incomplete(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete, or None when it is."""
    found, reason = inspect(checkpoint)
    return None if found else reason


def forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, checksums included, as an attacker can."""
    files = inspect(checkpoint)[0].files  # type: ignore[union-attr]
    (checkpoint / name).write_bytes(content)
    files = {file: ((checkpoint / file).stat().st_size, Folder(checkpoint).digest(file)) for file in files}
    (checkpoint / "manifest.json").write_text(manifest_text(files))


def save_in_layouts(config_path: str, layouts: list[tuple[int, int]]) -> None:
    """On every rank: one step that changes no bit, saved in each (shard, tensor-parallel) layout to SHARDxTP."""
    for shard, tp in layouts:
        degrees = ["--parallelism.data_parallel_shard_degree", str(shard), "--parallelism.tensor_parallel_degree", str(tp)]
        folder = Path(config_path).parent / f"{shard}x{tp}"
        options = ["--config", config_path, "--job.dump_folder", str(folder), *degrees, "--training.steps", "1"]
        config, _ = load_config([*options, "--optimizer.lr", "1e-30"])
        trainer = Trainer(config, join(config), StopRequest())
        trainer.prompt = []
        trainer.train()
        trainer.close()


def metrics(config: Path, run: str = "run") -> list[dict[str, Any]]:
    """The records of metrics.jsonl."""
    return [json.loads(line) for line in (config.parent / run / "metrics.jsonl").read_text().splitlines()]


def column(records: list[dict[str, Any]], key: str) -> dict[int, Any]:
    """One metric by step."""
    return {record["step"]: record[key] for record in records}
