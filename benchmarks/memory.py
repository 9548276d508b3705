"""The memory estimate of `cistron check` beside the resident set of a real training job, each in a process of its own.

    python benchmarks/memory.py

Jobs of differing kind, by what is largest or done otherwise in them. Measured is the peak of the resident set over two steps
(VmHWM, reset before the model is built) less what imports, the process group, the loader and the libraries' first calls hold.
glibc is told to return every larger block at once (MALLOC_MMAP_THRESHOLD_, whose default grows with what is freed) and to keep
one arena, or else the measure would be of its habits. On CUDA the allocator is read instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from cistron.models.attention import DocumentMask
from cistron.models.config import PRESETS
from cistron.models.decoder import Decoder
from cistron.models.init import init_weights
from cistron.trainer.config import load_config
from cistron.trainer.estimates import estimate
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

DEBUG = Path(__file__).resolve().parents[1] / "train_configs" / "debug.toml"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
}
JOBS = {
    "parameters": "model.dim=1024 model.hidden_dim=4096 model.n_heads=16 model.n_kv_heads=8 model.head_dim=64 "
    "model.vocab_size=16384 training.seq_len=128 training.local_batch_size=1",
    "activations": "model.dim=256 model.hidden_dim=1024 model.n_heads=8 model.n_kv_heads=4 "
    "training.seq_len=512 training.local_batch_size=16",
    "checkpointed": "model.dim=512 model.hidden_dim=2048 model.n_heads=8 model.n_kv_heads=4 model.head_dim=64 "
    "model.n_layers=12 training.seq_len=512 training.local_batch_size=8 activation_checkpoint.mode=full",
    "by operator": "model.dim=512 model.hidden_dim=2048 model.n_heads=8 model.n_kv_heads=4 model.head_dim=64 "
    "model.n_layers=12 training.seq_len=512 training.local_batch_size=8 activation_checkpoint.mode=selective",
    "vocabulary": "model.dim=256 model.vocab_size=128256 training.seq_len=512 training.local_batch_size=8",
    "bfloat16, Muon": "model.dim=1024 model.hidden_dim=4096 model.n_heads=16 model.n_kv_heads=8 model.head_dim=64 "
    "model.vocab_size=16384 training.seq_len=128 training.local_batch_size=1 training.mixed_precision_param=bfloat16 "
    "training.dtype=bfloat16 optimizer.state_dtype=bfloat16 optimizer.name=Muon",
    "compiled": "model.dim=256 model.hidden_dim=1024 model.n_heads=8 model.n_kv_heads=4 "
    "training.seq_len=512 training.local_batch_size=16 compile.enable=true",
}


def resident(field: str) -> int:
    """Bytes that a field of /proc/self/status names: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def warm_up(device: torch.device) -> None:
    """Let the libraries load and keep what they will: a forward and backward pass of a small decoder."""
    model = Decoder(PRESETS["debug"]).to(device)
    init_weights(model, 0)
    rows = torch.ones(1, 64, dtype=torch.int64, device=device)
    mask = DocumentMask(eos_id=0, pad_id=1).build(torch.zeros_like(rows).int())
    model(rows, rows.int(), mask, rows).sum().backward()


def measure(job: str, folder: str) -> None:
    """Train two steps and print what was measured and estimated, as JSON."""
    overrides = [part for pair in JOBS[job].split() for part in ("--" + pair.split("=")[0], pair.split("=")[1])]
    fixed = ["--job.dump_folder", folder, "--checkpoint.enable", "false", "--training.steps", "2", "--metrics.log_freq", "100"]
    config, _ = load_config(["--config", str(DEBUG), *fixed, "--training.global_batch_size", "-1", *overrides])
    world = join(config)
    on_gpu = world.device.type == "cuda"
    warm_up(world.device)

    class Measured(Trainer):
        """Remembers what was held before there was a model."""

        baseline = 0

        def open_evaluations(self) -> Any:
            opened = super().open_evaluations()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                self.baseline = torch.cuda.memory_allocated()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
                self.baseline = resident("VmRSS")
            return opened

        def conclude(self) -> None:
            """No sample: it is not part of a step."""

    trainer = Measured(config, world, StopRequest())
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    moments = estimate(config, trainer.decoder_config, world.layout, trainer.mask.executor, world.device.type)
    worst = max(moments, key=lambda moment: moment.size)
    measured = peak - trainer.baseline
    print(json.dumps({"measured": measured, "baseline": trainer.baseline, "estimated": worst.size, "moment": worst.name}))
    trainer.close()


def main() -> None:
    """Run every job in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS), help="jobs to run (default: all)")
    parser.add_argument("--measure", metavar="JOB", help="run this one alone, in this process")
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory() as folder:
            measure(options.measure, folder)
        return
    print(f"torch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU'}; MiB")
    print(f"{'job':14s} {'measured':>10s} {'estimated':>10s} {'ratio':>6s} {'baseline':>9s}  peak, by the estimate")
    for job in options.only:
        command = [sys.executable, __file__, "--measure", job]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        sizes = {key: result[key] / 2**20 for key in ("measured", "estimated", "baseline")}
        print(
            f"{job:14s} {sizes['measured']:10.0f} {sizes['estimated']:10.0f} {sizes['estimated'] / sizes['measured']:6.3f} "
            f"{sizes['baseline']:9.0f}  {result['moment']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
