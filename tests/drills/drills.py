"""What the drills share: a small job with a corpus of its own, ways to start it, and what it left behind.

They know Cistron by its command line and its files alone.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

JOB = """
[job]
dump_folder = "{run}"
[model]
preset = "debug"
dim = 64
n_layers = 2
n_heads = 4
n_kv_heads = 2
hidden_dim = 128
[data]
lanes = 8
[[data.sources]]
name = "words"
format = "jsonl"
paths = ["{corpus}/*.jsonl"]
[training]
seq_len = 256
local_batch_size = 8
global_batch_size = 16
steps = {steps}
mixed_precision_param = "float32"
[optimizer]
lr = 3e-3
[lr_scheduler]
warmup_steps = 10
[checkpoint]
interval = {interval}
keep_latest_k = 3
[metrics]
log_freq = 1
enable_tensorboard = false
[comm]
timeout_seconds = {timeout}
"""


def write_corpus(folder: Path) -> None:
    """4,000 documents of random words, so that rows never repeat within a drill."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    words = ["pack", "row", "mask", "eos", "lane", "token", "cistron", "codon", "gene", "read"]
    for part in range(4):
        texts = (" ".join(draw.choices(words, k=draw.randint(2, 60))) for _ in range(1000))
        (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_job(folder: Path, name: str, *, steps: int, interval: int, timeout: int) -> Path:
    """The TOML `<folder>/<name>.toml`, whose run is `<folder>/<name>`; all of a folder's jobs read one corpus."""
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    path = folder / f"{name}.toml"
    path.write_text(JOB.format(run=folder / name, corpus=corpus, steps=steps, interval=interval, timeout=timeout))
    return path


def torchrun(config: Path, launcher: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The command that trains `config`; `launcher` holds torchrun's own arguments."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *launcher,
        "-m",
        "cistron.trainer.train",
        "--config",
        str(config),
        *overrides,
    ]


def start(command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, with one thread per process, its output appended to `log`."""
    with log.open("a") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )


def children(pid: int) -> list[int]:
    """Process ids of a process's children, from /proc."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lists = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
        return [int(child) for text in lists for child in text.split()]
    return []


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Signal one process; False if it was gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def is_alive(pid: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def records(run: Path) -> list[dict[str, object]]:
    """The whole lines of metrics.jsonl; a run that is killed may leave half of one."""
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def last_step(run: Path) -> int:
    """The step of the last record; 0 without any."""
    found = records(run)
    return int(str(found[-1]["step"])) if found else 0


def curve(run: Path) -> dict[int, tuple[str, str, str]]:
    """Loss and gradient norm with all their digits, and what rows were seen, from the last record of each step."""
    return {int(str(r["step"])): (repr(r["loss"]), repr(r["grad_norm"]), str(r["rows_hash"])) for r in records(run)}


def step_folders(run: Path) -> dict[int, Path]:
    """Checkpoint folders by step, complete or not."""
    folders = (run / "checkpoint").glob("step-*")
    return {int(path.name[5:]): path for path in folders if path.name[5:].isdigit()}


def is_torn(path: Path) -> bool:
    """Whether a save of this step has begun and not ended."""
    return path.exists() and not (path / "manifest.json").exists()
